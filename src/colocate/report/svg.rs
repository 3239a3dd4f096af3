//! The few SVG elements that the charts are made of. Every text is escaped here and every coordinate is finite, so a chart cannot break
//! the page, whatever the figures or the tenants' names are.

use std::fmt;

/// Text made safe to stand in HTML or SVG, in an element or in a quoted attribute.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // No control character may stand in XML, and none is worth showing.
                control if control.is_control() => f.write_char(' ')?,
                plain => f.write_char(plain)?,
            }
        }
        Ok(())
    }
}

/// Where a text is fastened to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A point, in units of the drawing: one is about one CSS pixel.
pub(super) type Point = (f64, f64);

/// A drawing being made, [`WIDTH`](Self::WIDTH) wide and as high as it turns out.
pub(super) struct Svg {
    title: String,
    body: String,
}

impl Svg {
    /// Narrow enough that 12-unit text is still legible when the drawing is scaled to a phone's screen.
    pub(super) const WIDTH: f64 = 460.0;

    /// Of a title, in units of the drawing.
    pub(super) const TITLE_CHARACTER: f64 = 8.0;

    /// A drawing with a title, shown above it and read out by a screen reader.
    pub(super) fn new(title: &str) -> Self {
        Self::titled(title, &shorten(title, Self::WIDTH, Self::TITLE_CHARACTER))
    }

    /// A drawing whose title is `shown` in fewer words. The whole of it is read out, and appears where the drawing is pointed at.
    pub(super) fn titled(title: &str, shown: &str) -> Self {
        let mut svg = Self { title: title.to_owned(), body: String::new() };
        svg.text("title", (0.0, 15.0), Anchor::Start, shown);
        svg
    }

    /// Elements that belong together; `title` appears when pointed at.
    pub(super) fn group(&mut self, class: &str, title: &str, draw: impl FnOnce(&mut Self)) {
        self.body += &format!("<g class=\"{}\"><title>{}</title>", Escaped(class), Escaped(title));
        draw(self);
        self.body += "</g>\n";
    }

    pub(super) fn line(&mut self, class: &str, (x1, y1): Point, (x2, y2): Point) {
        self.body += &format!("<line class=\"{class}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>", Px(x1), Px(y1), Px(x2), Px(y2));
    }

    pub(super) fn rect(&mut self, class: &str, (x, y): Point, width: f64, height: f64) {
        self.body += &format!(
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
            Px(x),
            Px(y),
            Px(width.max(0.0)),
            Px(height.max(0.0))
        );
    }

    pub(super) fn circle(&mut self, class: &str, (x, y): Point, radius: f64) {
        self.body += &format!("<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"{}\"/>", Px(x), Px(y), Px(radius));
    }

    pub(super) fn text(&mut self, class: &str, (x, y): Point, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.body += &format!("<text class=\"{class}\" x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>", Px(x), Px(y), Escaped(text));
    }

    pub(super) fn path(&mut self, class: &str, points: &[Point]) {
        let mut data = String::new();
        for (at, &(x, y)) in points.iter().enumerate() {
            data += &format!("{}{} {}", if at == 0 { "M" } else { "L" }, Px(x), Px(y));
        }
        self.body += &format!("<path class=\"{class}\" d=\"{data}\"/>");
    }

    /// The finished element.
    pub(super) fn finish(self, height: f64) -> String {
        format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>\n{}</svg>",
            Px(Self::WIDTH),
            Px(height),
            self.body,
            title = Escaped(&self.title)
        )
    }
}

/// `text`, cut so that it takes no more than `width` at `per_character` units a character.
pub(super) fn shorten(text: &str, width: f64, per_character: f64) -> String {
    let most = (width / per_character).max(1.0) as usize;
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

struct Px(f64);

impl fmt::Display for Px {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = if self.0.is_finite() { self.0 } else { 0.0 };
        write!(f, "{}", (value * 10.0).round() / 10.0)
    }
}
