//! The text format of Prometheus, version 0.0.4: a family is a line of help, a
//! line with its type, and its samples.

use core::fmt::Write;

/// Type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Labels of a sample.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// The text so far.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
    family: String,
}

impl Text {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) -> &mut Self {
        self.family = name.to_owned();
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing into a String can not fail.
        let _ = writeln!(self.out, "# HELP {name} {help}");
        let _ = writeln!(self.out, "# TYPE {name} {}", kind.as_str());
        self
    }

    /// A sample of the family.
    pub fn sample(&mut self, labels: Labels<'_>, value: f64) -> &mut Self {
        self.with_suffix("", labels, value)
    }

    /// A sample of a counter: whole numbers up to 2^64 keep all digits.
    pub fn count(&mut self, labels: Labels<'_>, value: u64) -> &mut Self {
        self.head("", labels);
        let _ = writeln!(self.out, " {value}");
        self
    }

    /// A sample whose name is longer than the family's, as a histogram's are.
    pub fn with_suffix(&mut self, suffix: &str, labels: Labels<'_>, value: f64) -> &mut Self {
        self.head(suffix, labels);
        let _ = writeln!(self.out, " {value}");
        self
    }

    fn head(&mut self, suffix: &str, labels: Labels<'_>) {
        self.out.push_str(&self.family);
        self.out.push_str(suffix);
        for (i, (name, value)) in labels.iter().enumerate() {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let open = if i == 0 { '{' } else { ',' };
            let _ = write!(self.out, "{open}{name}=\"{value}\"");
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
    }

    pub fn finish(self) -> String {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_values_are_written_as_the_format_wants_them() {
        let mut t = Text::default();
        t.family("a_total", Kind::Counter, "One\nline \\ only.")
            .count(&[], u64::MAX)
            .count(&[("x", "a\"b\\c\nd"), ("y", "")], 0);
        t.family("b_seconds", Kind::Histogram, "Times.")
            .with_suffix("_bucket", &[("le", "+Inf")], 0.25)
            .sample(&[], 1e-7);
        assert_eq!(
            t.finish(),
            "# HELP a_total One\\nline \\\\ only.\n\
             # TYPE a_total counter\n\
             a_total 18446744073709551615\n\
             a_total{x=\"a\\\"b\\\\c\\nd\",y=\"\"} 0\n\
             # HELP b_seconds Times.\n\
             # TYPE b_seconds histogram\n\
             b_seconds_bucket{le=\"+Inf\"} 0.25\n\
             b_seconds 0.0000001\n"
        );
    }
}
