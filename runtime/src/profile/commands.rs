//! The commands that measured into one profile: one line for a shell, with `&&` between them, so that all can be run again at once.
//!
//! Commands other than `smidgen profile`, such as those of an engine that profiles itself, are kept as they were written: what their arguments
//! mean is not known here.

use std::path::Path;

const AND: &str = " && ";

/// An argument as it is written for a POSIX shell.
pub fn quoted(argument: &str) -> String {
    let plain = !argument.is_empty() && argument.chars().all(|c| c.is_alphanumeric() || "-_=.,/:@%+".contains(c));
    if plain { argument.to_owned() } else { format!("'{}'", argument.replace('\'', r"'\''")) }
}

/// `commands`, and after them those of `more` that are not among them.
pub(super) fn union(commands: &str, more: &str) -> String {
    let mut all = split(commands);
    for command in split(more) {
        if !all.contains(&command) {
            all.push(command);
        }
    }
    all.iter().map(|command| written(command)).collect::<Vec<_>>().join(AND)
}

/// Where commands are to measure again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    /// On the device that they name.
    TheSame,
    Gpu,
    Simulator,
}

/// The commands by which `models` are measured into `path` again: `commands` with another output, and `on` another device. Models that none of them names, as in a
/// file of which only the last command is known, are measured at the default shapes.
pub(super) fn again(commands: &str, models: &[String], path: &Path, on: On) -> String {
    let device = if on == On::Simulator { " --device sim" } else { "" };
    let output = quoted(&path.display().to_string());
    let mut unnamed: Vec<&str> = models.iter().map(String::as_str).collect();
    let mut all: Vec<String> = Vec::new();
    for command in split(commands) {
        let line = match profile_options(&command) {
            Some(mut options) => {
                options.retain(|(name, _)| match *name {
                    "-o" | "--output" => false,
                    "--device" => on == On::TheSame,
                    _ => true,
                });
                unnamed.retain(|model| !options.iter().any(|(name, value)| *name == "--model" && value == model));
                let written = |&(name, value): &(&str, &str)| {
                    if FLAGS.contains(&name) { format!(" {name}") } else { format!(" {name} {}", quoted(value)) }
                };
                let options: String = options.iter().map(written).collect();
                format!("smidgen profile{device}{options} -o {output}")
            }
            // Others of smidgen's commands measure by the way, into a file that is theirs to name.
            None if command.first().is_some_and(|program| program.meant == "smidgen") => continue,
            None => {
                unnamed.clear();
                written(&command)
            }
        };
        if !all.contains(&line) {
            all.push(line);
        }
    }
    if all.is_empty() && unnamed.is_empty() {
        unnamed.push("MODEL");
    }
    if !unnamed.is_empty() {
        let models: String = unnamed.iter().map(|model| format!(" --model {}", quoted(model))).collect();
        all.push(format!("smidgen profile{device}{models} -o {output}"));
    }
    all.join(AND)
}

/// A word of a command.
#[derive(Debug, PartialEq)]
struct Word<'a> {
    /// As it stands there.
    written: &'a str,
    /// As the program gets it.
    meant: String,
}

fn written(command: &[Word<'_>]) -> String {
    command.iter().map(|word| word.written).collect::<Vec<_>>().join(" ")
}

/// Options of `smidgen profile` that stand alone.
const FLAGS: [&str; 1] = ["--no-energy"];

/// The options of a `smidgen profile` with their values, empty for those that stand alone; none for another command.
fn profile_options<'a>(command: &'a [Word<'_>]) -> Option<Vec<(&'a str, &'a str)>> {
    let mut words = command.iter().map(|word| word.meant.as_str());
    if (words.next(), words.next()) != (Some("smidgen"), Some("profile")) {
        return None;
    }
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        options.push(match (word.strip_prefix("-o"), word.split_once('=')) {
            (Some(value), _) if !value.is_empty() => ("-o", value.strip_prefix('=').unwrap_or(value)),
            (_, Some(option)) => option,
            (_, None) if FLAGS.contains(&word) => (word, ""),
            (_, None) => (word, words.next().unwrap_or_default()),
        });
    }
    Some(options)
}

fn split(commands: &str) -> Vec<Vec<Word<'_>>> {
    let words = words(commands);
    let mut all: Vec<Vec<Word<'_>>> = vec![Vec::new()];
    for word in words {
        match all.last_mut() {
            Some(command) if word.written != AND.trim() => command.push(word),
            _ => all.push(Vec::new()),
        }
    }
    all.retain(|command| !command.is_empty());
    all
}

fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (mut meant, mut quote, mut escaped, mut end) = (String::new(), None, false, rest.len());
        for (at, c) in rest.char_indices() {
            match (quote, c) {
                _ if escaped => {
                    meant.push(c);
                    escaped = false;
                }
                (None | Some('"'), '\\') => escaped = true,
                (Some(open), _) if c == open => quote = None,
                (None, '\'' | '"') => quote = Some(c),
                (None, _) if c.is_whitespace() => {
                    end = at;
                    break;
                }
                _ => meant.push(c),
            }
        }
        let (written, after) = rest.split_at(end);
        words.push(Word { written, meant });
        rest = after.trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(commands: &str, models: &[&str]) -> String {
        let models: Vec<String> = models.iter().map(|&model| model.to_owned()).collect();
        super::again(commands, &models, Path::new("there.json"), On::TheSame)
    }

    #[test]
    fn the_output_is_replaced_however_it_was_written() {
        for output in
            ["-o p.json", "-op.json", "-o=p.json", "--output p.json", "--output=p.json", "-o 'my profile.json'", "'-omy profile.json'"]
        {
            let command = format!("smidgen profile --model bert-base {output} --batch 4");
            assert_eq!(again(&command, &["bert-base"]), "smidgen profile --model bert-base --batch 4 -o there.json", "{output}");
        }
    }

    #[test]
    fn quoted_arguments_stay_what_they_are() {
        for model in ["my model", "it's", "a && b", ""] {
            let command = format!("smidgen profile --model {} -o p.json", quoted(model));
            assert_eq!(again(&command, &[model]), command.replace("p.json", "there.json"));
        }
        let spaced = super::again("", &["bert-base".to_owned()], Path::new("my profile.json"), On::TheSame);
        assert_eq!(spaced, "smidgen profile --model bert-base -o 'my profile.json'");
    }

    #[test]
    fn an_option_that_stands_alone_takes_no_other_for_its_value() {
        let command = "smidgen profile --model bert-base --no-energy -o p.json";
        assert_eq!(again(command, &["bert-base"]), "smidgen profile --model bert-base --no-energy -o there.json");
    }

    #[test]
    fn models_that_no_command_names_are_measured_too() {
        let command = "smidgen profile --model bert-base --batch 8 -o p.json";
        assert_eq!(
            again(command, &["mistral-7b", "bert-base"]),
            "smidgen profile --model bert-base --batch 8 -o there.json && smidgen profile --model mistral-7b -o there.json"
        );
        assert_eq!(again("smidgen colocate --tenant a=gpt2", &["gpt2"]), "smidgen profile --model gpt2 -o there.json");
        assert_eq!(again("", &[]), "smidgen profile --model MODEL -o there.json");
    }

    #[test]
    fn what_another_program_measured_it_measures_again() {
        let command = "cd engine && ./engine --profile \"a file\"";
        assert_eq!(again(command, &["block"]), command);
    }

    #[test]
    fn a_command_is_kept_once() {
        let (one, other) = ("smidgen profile --model a -o 'x && y'", "smidgen profile --model b -o z");
        let both = union(one, other);
        assert_eq!(both, format!("{one} && {other}"));
        assert_eq!(union(&both, one), both);
        assert_eq!(union(&both, &both), both);
        assert_eq!(union("", one), one);
    }
}
