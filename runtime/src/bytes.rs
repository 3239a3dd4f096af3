//! Amounts of memory as messages tell them.

/// `bytes` as a person reads them; fields of errors have them to the byte.
pub(crate) fn readable(bytes: u64) -> String {
    match bytes {
        0 => "nothing".to_owned(),
        1_000_000_000.. => format!("{:.2} GB", bytes as f64 / 1e9),
        1_000_000.. => format!("{:.2} MB", bytes as f64 / 1e6),
        _ => format!("{bytes} bytes"),
    }
}
