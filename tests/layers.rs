//! A module imports only from lower layers, never sideways or up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The layers, from the bottom up; `None` for modules that no module may import and that may import
/// only the lowest layer.
const LAYERS: [(&str, Option<u32>); 30] = [
    ("clock", Some(0)),
    ("environment", Some(0)),
    ("histogram", Some(0)),
    ("hosts", Some(0)),
    ("json", Some(0)),
    ("log_shard", Some(0)),
    ("seconds", Some(0)),
    ("shard_id", Some(0)),
    ("intents", Some(0)),
    ("token", Some(0)),
    ("timing", Some(0)),
    ("dial", Some(1)),
    ("protocol", Some(1)),
    ("error", Some(2)),
    ("event", Some(3)),
    ("limit", Some(3)),
    ("transport", Some(3)),
    ("rest", Some(3)),
    ("store", Some(4)),
    ("delivery", Some(4)),
    ("interaction", Some(4)),
    ("config", Some(5)),
    ("redis", Some(5)),
    ("shard", Some(6)),
    ("manager", Some(7)),
    ("sim", None),
    // The modules that re-export the others belong to no layer, and no module imports from them.
    ("guide", Some(8)),
    ("lib", Some(8)),
    ("main", Some(8)),
    ("bin", Some(8)),
];

#[test]
fn modules_import_only_from_lower_layers() {
    let layers: BTreeMap<_, _> = LAYERS.into();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    let mut wrong = Vec::new();
    for file in files(&source) {
        let path = module_path(&source, &file);
        let from = path.first().cloned().unwrap_or_else(|| "lib".into());
        assert!(
            layers.contains_key(from.as_str()),
            "{from} has no layer: give it one here"
        );
        let text = std::fs::read_to_string(&file).unwrap();
        for (line, to) in imports(&text, &path) {
            // That module tests everything together.
            let is_suite = path.iter().any(|part| part == "virtual_time");
            if to == from || from == "lib" || is_suite {
                continue;
            }
            checked += 1;
            let below = match (layers.get(from.as_str()), layers.get(to.as_str())) {
                (Some(Some(from)), Some(Some(to))) => to < from,
                (Some(None), Some(Some(to))) => *to == 0,
                _ => false,
            };
            if !below {
                wrong.push(format!("{}:{line}: {from} imports {to}", file.display()));
            }
        }
    }

    assert!(
        checked > 50,
        "only {checked} imports were seen: the reader is broken"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_finds_every_form_of_import() {
    let path = ["shard".to_owned(), "thread".to_owned()];
    let text = "use crate::a::B;\nfn f() { crate::b::c(); }\nuse super::x;\nuse super::super::y::Z;\nuse super::super::{p, q::r};\n\
                use crate::{c, d::{e, f}, g as h};\npub(crate) use crate::{\n    i,\n    j::k,\n};\n// use crate::no;\n";
    let found: Vec<String> = imports(text, &path).into_iter().map(|(_, to)| to).collect();
    assert_eq!(
        found,
        ["a", "b", "shard", "y", "p", "q", "c", "d", "g", "i", "j"]
    );
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The module that a file is, from the crate's root: `["shard", "thread"]`.
fn module_path(source: &Path, file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(source).unwrap().with_extension("");
    let mut path: Vec<String> = relative
        .iter()
        .map(|part| part.to_str().unwrap().to_owned())
        .filter(|part| part != "mod")
        .collect();
    if path.last().is_some_and(|last| last == "lib") {
        path.pop();
    }
    path
}

/// The top-level modules that `crate::` and `super::` paths lead to, with their lines.
fn imports(text: &str, module: &[String]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // Inline modules, of which only those of tests exist, have a `super` that is the file itself.
    let mut inline = false;
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap().to_owned() + "\n")
        .collect();

    for (at, _) in code
        .match_indices("crate::")
        .chain(code.match_indices("super::"))
        .collect::<BTreeMap<_, _>>()
    {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$')
            || code[..at].ends_with("super::")
        {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        inline |= code[..at].contains("mod tests {");
        let mut rest = &code[at..];
        let mut parents = 0;
        let base = if let Some(after) = rest.strip_prefix("crate::") {
            rest = after;
            0
        } else {
            while let Some(after) = rest.strip_prefix("super::") {
                rest = after;
                parents += 1;
            }
            (module.len() + usize::from(inline)).saturating_sub(parents)
        };
        if base > 0 {
            found.push((line, module[0].clone()));
        } else {
            found.extend(first_names(rest).into_iter().map(|name| (line, name)));
        }
    }
    found
}

/// The first names of a path, or of each path in braces.
fn first_names(rest: &str) -> Vec<String> {
    let name = |text: &str| {
        text.trim()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };

    let Some(group) = rest.strip_prefix('{') else {
        return vec![name(rest)];
    };

    let (mut names, mut depth, mut current) = (Vec::new(), 0, String::new());
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(std::mem::take(&mut current)),
            _ => {}
        }
        if depth == 0 && c != ',' {
            current.push(c);
        }
    }

    names.push(current);
    names
        .iter()
        .map(|entry| name(entry))
        .filter(|name| !name.is_empty())
        .collect()
}
