//! Names that are too long for their place, in tables and on pages, or that would break a line.

/// `name` on one line: names are whatever somebody has typed.
pub fn on_one_line(name: &str) -> String {
    name.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// `name` in at most `most` characters. It is cut in the middle: names of tenants that serve one model differ at the end, if at all.
pub(super) fn cut(name: &str, most: usize) -> String {
    let count = name.chars().count();
    let most = most.max(1);
    if count <= most {
        return name.to_owned();
    }
    let head = most / 2;
    let tail = most - 1 - head;
    name.chars().take(head).chain(['…']).chain(name.chars().skip(count - tail)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_long_name_stay() {
        for (most, decode, prefill) in [
            (20, "llama-3.2-1b-decode", "llama-3.2-1b-prefill"),
            (16, "llama-3.…-decode", "llama-3.…prefill"),
            (3, "l…e", "l…l"),
            (1, "…", "…"),
            (0, "…", "…"),
        ] {
            assert_eq!((cut("llama-3.2-1b-decode", most), cut("llama-3.2-1b-prefill", most)), (decode.into(), prefill.into()));
        }
        assert_eq!(cut("ünïcödé", 4), "ün…é");
    }
}
