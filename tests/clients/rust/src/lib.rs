/// The version of a dependency, from the lock file.
pub fn version(name: &str) -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let entry = lock.split_once(&format!("name = \"{name}\"\nversion = \""));
    entry
        .and_then(|(_, rest)| rest.split('"').next())
        .unwrap_or("?")
}
