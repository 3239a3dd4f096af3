//! The report.
pub fn render(_: &super::results::RunResult) -> String { String::new() }
