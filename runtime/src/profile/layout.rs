//! How a profile is laid out as text: indented, but every element of a list on one line, so that one measured point is one line of a diff.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

use super::Profile;

/// The text of a profile file.
pub(super) fn to_json(profile: &Profile) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::new();
    profile.serialize(&mut Serializer::with_formatter(&mut text, OneLinePerElement::default()))?;
    text.push(b'\n');
    Ok(text)
}

/// Pretty outside lists; compact inside their elements.
#[derive(Default)]
struct OneLinePerElement {
    pretty: PrettyFormatter<'static>,
    compact: CompactFormatter,
    /// How many lists and objects around the present place are inside a list's element, that list included.
    inside: usize,
}

impl OneLinePerElement {
    /// Whether the present object or list is the outermost list or outside of it.
    fn is_pretty(&self) -> bool {
        self.inside <= 1
    }
}

impl Formatter for OneLinePerElement {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.inside += 1;
        if self.is_pretty() { self.pretty.begin_array(out) } else { self.compact.begin_array(out) }
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        let pretty = self.is_pretty();
        self.inside -= 1;
        if pretty { self.pretty.end_array(out) } else { self.compact.end_array(out) }
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        match (self.is_pretty(), first) {
            (true, _) => self.pretty.begin_array_value(out, first),
            (false, true) => Ok(()),
            (false, false) => out.write_all(b", "),
        }
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        if self.is_pretty() { self.pretty.end_array_value(out) } else { self.compact.end_array_value(out) }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        if self.inside == 0 {
            return self.pretty.begin_object(out);
        }
        self.inside += 1;
        self.compact.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        if self.inside == 0 {
            return self.pretty.end_object(out);
        }
        self.inside -= 1;
        self.compact.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        match (self.inside, first) {
            (0, _) => self.pretty.begin_object_key(out, first),
            (_, true) => Ok(()),
            (_, false) => out.write_all(b", "),
        }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        if self.inside == 0 { self.pretty.end_object_value(out) } else { self.compact.end_object_value(out) }
    }
}
