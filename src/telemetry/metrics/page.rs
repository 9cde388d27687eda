//! The text that Prometheus reads (exposition format 0.0.4), and the documentation of what is in it.

use std::fmt::{Display, Write as _};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{ALL, Definition, Histogram, Kind};

/// A page that is being written.
#[derive(Debug, Default)]
pub struct Page(String);

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Page {
    /// The page as it is.
    pub fn finish(self) -> String {
        self.0
    }

    /// How long it is, in bytes.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing on it.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the values that follow mean.
    pub fn begin(&mut self, definition: &Definition) {
        let Definition { name, kind, help, .. } = definition;
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {}", kind.name()));
    }

    /// A value.
    pub fn value(&mut self, definition: &Definition, labels: &[&str], value: impl Display) {
        self.sample(definition.name, definition.labels.iter().copied().zip(labels.iter().copied()), value);
    }

    /// One alone, with what it means.
    pub fn single(&mut self, definition: &Definition, value: impl Display) {
        self.begin(definition);
        self.value(definition, &[], value);
    }

    /// The sum of several histograms that are alike.
    pub fn histogram<'a>(
        &mut self,
        definition: &Definition,
        labels: &[&str],
        parts: impl Iterator<Item = &'a Histogram>,
    ) {
        let parts: Vec<&Histogram> = parts.collect();
        let Some(first) = parts.first() else { return };
        let pairs = || definition.labels.iter().copied().zip(labels.iter().copied());
        let name = definition.name;
        let mut total = 0;
        for (at, _) in first.counts.iter().enumerate() {
            let counts = parts.iter().filter_map(|part| part.counts.get(at));
            total += counts.map(|count| count.load(Ordering::Relaxed)).sum::<u64>();
            let bound = match first.bounds.get(at) {
                Some(bound) => bound.as_secs_f64().to_string(),
                None => "+Inf".into(),
            };
            self.sample(&format!("{name}_bucket"), pairs().chain([("le", bound.as_str())]), total);
        }
        let sum: u64 = parts.iter().map(|part| part.sum.load(Ordering::Relaxed)).sum();
        self.sample(&format!("{name}_sum"), pairs(), Duration::from_nanos(sum).as_secs_f64());
        self.sample(&format!("{name}_count"), pairs(), total);
    }

    fn sample<'a>(
        &mut self,
        name: &str,
        labels: impl Iterator<Item = (&'a str, &'a str)>,
        value: impl Display,
    ) {
        self.0.push_str(name);
        let mut before = '{';
        for (label, value) in labels {
            self.0.push(before);
            self.0.push_str(label);
            self.0.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
            before = ',';
        }
        self.line(format_args!("{} {value}", if before == ',' { "}" } else { "" }));
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{text}");
    }
}

/// The documentation of every metric: a table in Markdown.
pub fn reference() -> String {
    let mut text = String::from("| metric | kind | labels | |\n|---|---|---|---|\n");
    for Definition { name, kind, labels, help } in ALL {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| `{name}` | {} | {labels} | {help} |", kind.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{
        Counter, DECISION_SECONDS, DECISIONS, Family, SIGN_INS_TOTAL, STORE_SECONDS,
    };

    #[test]
    fn a_page_says_what_a_value_means_and_escapes_its_labels() {
        let family: Family<Counter> = Family::new(&SIGN_INS_TOTAL);
        family.add(&["a\"b\\c\nd", "done"]);
        family.add(&["a\"b\\c\nd", "done"]);
        family.add(&["z", "begun"]);
        let mut page = Page::default();
        family.write(&mut page);
        let page = page.finish();
        let lines: Vec<&str> = page.lines().collect();
        assert!(lines[0].starts_with("# HELP portcullis_sign_ins_total Sign-ins by provider"));
        assert_eq!(lines[1], "# TYPE portcullis_sign_ins_total counter");
        assert_eq!(lines[2], r#"portcullis_sign_ins_total{provider="a\"b\\c\nd",outcome="done"} 2"#);
        assert_eq!(lines[3], r#"portcullis_sign_ins_total{provider="z",outcome="begun"} 1"#);
    }

    #[test]
    fn histograms_are_added_up_and_their_buckets_are_cumulative() {
        let (one, two) = (Histogram::new(DECISIONS), Histogram::new(DECISIONS));
        one.observe(Duration::from_micros(10));
        one.observe(Duration::from_micros(11));
        two.observe(Duration::from_secs(100));
        let mut page = Page::default();
        page.histogram(&DECISION_SECONDS, &[], [&one, &two].into_iter());
        let page = page.finish();
        for line in [
            "portcullis_decision_duration_seconds_bucket{le=\"0.00001\"} 1",
            "portcullis_decision_duration_seconds_bucket{le=\"0.000025\"} 2",
            "portcullis_decision_duration_seconds_bucket{le=\"2\"} 2",
            "portcullis_decision_duration_seconds_bucket{le=\"+Inf\"} 3",
            "portcullis_decision_duration_seconds_sum 100.000021",
            "portcullis_decision_duration_seconds_count 3",
        ] {
            assert!(page.lines().any(|one| one == line), "{line}: {page}");
        }
        let family: Family<Histogram> = Family::new(&STORE_SECONDS);
        family.observe(&["load"], Duration::from_millis(3));
        let mut page = Page::default();
        family.write(&mut page);
        assert!(
            page.finish()
                .contains("portcullis_store_duration_seconds_bucket{operation=\"load\",le=\"0.005\"} 1")
        );
    }

    /// `BLESS=1 cargo test --lib documentation` writes it anew.
    #[test]
    fn the_documentation_says_what_the_definitions_say() {
        const MARK: &str = "<!-- generated -->\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/metrics.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (front, generated) = text.split_once(MARK).unwrap();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, format!("{front}{MARK}{}", reference())).unwrap();
            return;
        }
        assert_eq!(generated, reference());
    }

    #[test]
    fn names_are_unique_and_as_prometheus_wants_them() {
        for (at, one) in ALL.iter().enumerate() {
            assert!(ALL.iter().skip(at + 1).all(|other| other.name != one.name), "{}", one.name);
            assert_eq!(one.name.ends_with("_total"), one.kind == Kind::Counter, "{}", one.name);
            assert!(one.kind != Kind::Histogram || one.name.ends_with("_seconds"), "{}", one.name);
            assert!(!one.help.contains(['\n', '|', '\\']) && one.help.ends_with('.'), "{}", one.name);
        }
    }
}
