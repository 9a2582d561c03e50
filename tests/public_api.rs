//! The public API must match `tests/public_api.txt`, so that reviewers notice changes to it.
//!
//! After an intended change: `UPDATE_PUBLIC_API=1 cargo test --features full --test public_api`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Where this file's program was built.
fn target() -> PathBuf {
    let program = env::current_exe().unwrap();
    program.ancestors().nth(3).unwrap().to_owned()
}

/// The pages of the documentation, built if they are not there.
fn pages(target: &Path) -> Vec<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args([
            "doc",
            "--profile",
            "test",
            "--no-deps",
            "--features",
            "full",
            "--target-dir",
        ])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );

    let mut folders = vec![target.join("doc/threadcord")];
    let mut pages = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                pages.push(path);
            }
        }
    }
    pages
}

/// The text of HTML, in one line.
fn text(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        rest = tag.split_once('>').map_or("", |(_, after)| after);
    }

    text.push_str(rest);
    for (from, to) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&nbsp;", " "),
        ("\u{a0}", " "),
        ("&amp;", "&"),
    ] {
        text = text.replace(from, to);
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every part of a text between two delimiters.
fn between<'a>(html: &'a str, start: &str, end: &str) -> Vec<&'a str> {
    let pieces = html.split(start).skip(1);
    pieces
        .filter_map(|piece| piece.split_once(end))
        .map(|(inside, _)| inside)
        .collect()
}

/// What a page shows for an item: its declaration, its methods, and its own trait implementations.
fn signatures(html: &str) -> Vec<String> {
    // Implementations that every type has are left out.
    let own = html
        .split("id=\"synthetic-implementations\"")
        .next()
        .unwrap_or_default();
    let (inherent, traits) = own
        .split_once("id=\"trait-implementations\"")
        .unwrap_or((own, ""));
    let declared = between(inherent, "item-decl\"><code>", "</code></pre>");
    let methods = between(inherent, "class=\"code-header\">", "</h");
    let traits = between(traits, "class=\"code-header\">", "</h");
    let traits = traits
        .into_iter()
        .map(text)
        .filter(|line| line.starts_with("impl"));
    declared
        .into_iter()
        .chain(methods)
        .map(text)
        .chain(traits)
        .collect()
}

#[test]
fn the_public_api_matches_the_file() {
    let target = target();
    let root = target.join("doc/threadcord");
    let mut lines = BTreeSet::new();
    for page in pages(&target) {
        let name = page
            .strip_prefix(&root)
            .unwrap()
            .to_string_lossy()
            .replace('\\', "/");
        let stem = name.rsplit('/').next().unwrap().to_owned();
        let kinds = [
            "struct.",
            "enum.",
            "trait.",
            "fn.",
            "constant.",
            "type.",
            "macro.",
        ];
        if !kinds.iter().any(|kind| stem.starts_with(kind)) {
            continue;
        }
        let item = name.trim_end_matches(".html");
        let html = fs::read_to_string(&page).unwrap();
        // A page that only redirects to another has no content.
        for signature in signatures(&html) {
            lines.insert(format!("{item}: {signature}"));
        }
    }
    assert!(
        lines.len() > 300,
        "only {} lines: the pages are read wrongly",
        lines.len()
    );

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/public_api.txt");
    let now = lines.iter().cloned().collect::<Vec<_>>().join("\n") + "\n";
    if env::var_os("UPDATE_PUBLIC_API").is_some() {
        fs::write(&file, &now).unwrap();
    }
    let before = fs::read_to_string(&file).unwrap_or_default();
    let before: BTreeSet<_> = before.lines().map(str::to_owned).collect();
    let gone = before.difference(&lines).map(|line| format!("- {line}"));
    let new = lines.difference(&before).map(|line| format!("+ {line}"));
    let changes: Vec<_> = gone.chain(new).collect();
    assert!(
        changes.is_empty(),
        "the public API has changed; the head of this file says what to do if that is meant:\n{}",
        changes.join("\n")
    );
}
