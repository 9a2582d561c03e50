//! Environment variables for tests.

/// Returns a variable as a number; `None` if it is not set.
pub(crate) fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("the variable is a number"))
}
