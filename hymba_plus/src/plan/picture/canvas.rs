//! A few shapes of SVG, with colours that follow the reader's light or dark scheme.

use std::fmt::Write;

/// Fills of component kinds, in the order in which a plan names them: light scheme, dark scheme.
const FILLS: [[&str; 2]; 8] = [
    ["#4f7fd9", "#5b8def"],
    ["#e08a3c", "#e8994f"],
    ["#4fa36a", "#5cb87a"],
    ["#9b6bc9", "#ab7edb"],
    ["#cf5a68", "#dd6c79"],
    ["#3f9fa8", "#4db3bd"],
    ["#a58a2e", "#bda245"],
    ["#7d8aa0", "#8e9bb2"],
];

/// Where a text stands relative to its point.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// An SVG under construction; lengths are in pixels.
#[derive(Debug, Default)]
pub(super) struct Canvas {
    body: String,
}

impl Canvas {
    /// A rounded box of a class, with a text that a pointer shows.
    pub(super) fn rect(&mut self, class: &str, [x, y, width, height]: [f64; 4], title: &str) {
        let _ = write!(
            self.body,
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="4">"#
        );
        if !title.is_empty() {
            let _ = write!(self.body, "<title>{}</title>", escaped(title));
        }
        self.body.push_str("</rect>\n");
    }

    /// A line of text of a class; its baseline starts, ends or is centred at the point.
    pub(super) fn text(&mut self, class: &str, [x, y]: [f64; 2], anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        let _ = writeln!(
            self.body,
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
        );
    }

    /// A path of a class.
    pub(super) fn path(&mut self, class: &str, data: &str) {
        let _ = writeln!(self.body, r#"<path class="{class}" d="{data}"/>"#);
    }

    /// A straight line of a class.
    pub(super) fn line(&mut self, class: &str, [x, y]: [f64; 2], [to_x, to_y]: [f64; 2]) {
        self.path(class, &format!("M{x:.1} {y:.1}L{to_x:.1} {to_y:.1}"));
    }

    /// The residual sum: a circle with a plus.
    pub(super) fn sum(&mut self, [x, y]: [f64; 2]) {
        let _ = writeln!(self.body, r#"<circle class="sum" cx="{x:.1}" cy="{y:.1}" r="7"/>"#);
        self.line("wire", [x - 4.0, y], [x + 4.0, y]);
        self.line("wire", [x, y - 4.0], [x, y + 4.0]);
    }

    /// The whole picture.
    pub(super) fn finish(self, [width, height]: [f64; 2], title: &str) -> String {
        let mut style = String::from(LIGHT);
        for (i, [light, _]) in FILLS.iter().enumerate() {
            let _ = writeln!(style, ".k{i}{{fill:{light}}}");
        }
        let _ = writeln!(style, "@media (prefers-color-scheme:dark){{{DARK}");
        for (i, [_, dark]) in FILLS.iter().enumerate() {
            let _ = writeln!(style, ".k{i}{{fill:{dark}}}");
        }
        style.push('}');
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\">\n<title>{}</title>\n<style>\n{style}\n</style>\n<rect class=\"ground\" x=\"0\" y=\"0\" width=\"100%\" height=\"100%\"/>\n{}</svg>\n",
            escaped(title),
            self.body
        )
    }
}

/// The class of the `n`-th kind.
pub(super) fn fill(n: usize) -> String {
    format!("k{}", n % FILLS.len())
}

const LIGHT: &str = "\
svg{font-family:ui-sans-serif,system-ui,'Segoe UI',Helvetica,Arial,sans-serif}
text{fill:#1f2733;font-size:11px}
.ground{fill:#fbfbfd}
.title{font-size:20px;font-weight:600}
.head{font-size:13px;font-weight:600}
.dim{fill:#667084}
.small{font-size:9.5px}
.number{font-size:9.5px;fill:#667084}
.on{fill:#ffffff;font-size:10px;font-weight:600}
.on-small{fill:#ffffff;font-size:9px}
.card{fill:#ffffff;stroke:#dfe3ea}
.part{fill:#eef1f6;stroke:#d3d9e3}
.wire{stroke:#8a94a6;fill:none;stroke-width:1.4}
.stream{stroke:#aab3c2;fill:none;stroke-width:4;stroke-linecap:round;stroke-linejoin:round}
.share{stroke:#cf5a68;fill:none;stroke-width:1.6}
.share-dot{fill:#cf5a68}
.sum{fill:#fbfbfd;stroke:#8a94a6;stroke-width:1.4}
.fixed{fill:#8a94a6}
.grows{fill:#c3cad6}
.track{fill:#00000018}
.seen{fill:#ffffffcc}
.none{fill:none;stroke:#c3cad6;stroke-dasharray:3 3}
";

const DARK: &str = "\
text{fill:#e6e9ef}
.ground{fill:#14181f}
.dim{fill:#98a2b3}
.number{fill:#98a2b3}
.on{fill:#0f1319}
.on-small{fill:#0f1319}
.card{fill:#1b2029;stroke:#2c3340}
.part{fill:#252c38;stroke:#384152}
.wire{stroke:#7c879b}
.stream{stroke:#4a5568}
.share{stroke:#f0808c}
.share-dot{fill:#f0808c}
.sum{fill:#14181f;stroke:#7c879b}
.fixed{fill:#7c879b}
.grows{fill:#465063}
.track{fill:#00000030}
.seen{fill:#0f1319cc}
.none{stroke:#465063}
";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
