//! Results, for people as tables and for programs as JSON. Results go to standard output, errors and remarks to
//! standard error.

use std::io::{self, IsTerminal as _, Write as _};

use cim::Instance;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Map, Value, json};

use crate::cli::Format;
use crate::error::{Error, Result};
use crate::inspect;
use crate::report::{Link, Report, links_text};
use crate::size::Size;

/// One value of a result.
#[derive(Clone, Debug, PartialEq)]
struct Field {
    key: String,
    /// The column's title; `None` for what only programs get.
    title: Option<String>,
    text: String,
    json: Value,
}

/// One thing of a result.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    fields: Vec<Field>,
}

impl Row {
    /// An empty row.
    pub(crate) fn new() -> Self {
        Row::default()
    }

    fn push(mut self, key: &str, title: Option<&str>, text: String, json: Value) -> Self {
        self.fields.push(Field {
            key: key.to_owned(),
            title: title.map(str::to_owned),
            text,
            json,
        });
        self
    }

    /// A text.
    pub(crate) fn text(self, key: &str, title: &str, text: impl Into<String>) -> Self {
        let text = text.into();
        self.push(key, Some(title), text.clone(), json!(text))
    }

    /// A text, or null.
    pub(crate) fn maybe(self, key: &str, title: &str, text: Option<String>) -> Self {
        let json = json!(text);
        self.push(key, Some(title), text.unwrap_or_default(), json)
    }

    /// A number, or null.
    pub(crate) fn number(self, key: &str, title: &str, number: Option<u64>) -> Self {
        let text = number.map_or_else(String::new, |n| n.to_string());
        self.push(key, Some(title), text, json!(number))
    }

    /// A number of bytes, or null.
    pub(crate) fn size(self, key: &str, title: &str, bytes: Option<u64>) -> Self {
        let text = bytes.map_or_else(String::new, |n| Size(n).to_string());
        self.push(key, Some(title), text, json!(bytes))
    }

    /// Yes, no, or null.
    pub(crate) fn yes(self, key: &str, title: &str, yes: Option<bool>) -> Self {
        let text = match yes {
            Some(true) => "yes",
            Some(false) => "no",
            None => "",
        };
        self.push(key, Some(title), text.to_owned(), json!(yes))
    }

    /// Several texts, one line each.
    pub(crate) fn lines(self, key: &str, title: &str, lines: Vec<String>) -> Self {
        let text = lines.join("\n");
        self.push(key, Some(title), text, json!(lines))
    }

    /// Something people read otherwise than programs.
    pub(crate) fn both(self, key: &str, title: &str, text: String, json: Value) -> Self {
        self.push(key, Some(title), text, json)
    }

    /// Something only programs get.
    pub(crate) fn hidden(self, key: &str, json: Value) -> Self {
        self.push(key, None, String::new(), json)
    }

    /// Further rows within this one.
    pub(crate) fn rows(self, key: &str, title: &str, rows: &[Row]) -> Self {
        let text = table(rows, true);
        let json = rows.iter().map(Row::json).collect();
        self.push(key, Some(title), text, json)
    }

    /// An instance, property by property; null ones only for programs.
    pub(crate) fn instance(instance: &Instance) -> Self {
        let mut row = Row::new();
        for property in &instance.properties {
            let name = property.name.as_str();
            let json = inspect::json(&property.value);
            row = match &property.value {
                cim::Value::Null => row.hidden(name, json),
                value => row.both(name, name, inspect::words(value), json),
            };
        }
        row
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let fields = self.fields.iter();
        Value::Object(
            fields
                .map(|f| (f.key.clone(), f.json.clone()))
                .collect::<Map<_, _>>(),
        )
    }
}

/// Where results go, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    /// Prints in that format.
    pub(crate) fn new(format: Format) -> Self {
        Output { format }
    }

    /// Whether programs read it.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints text as it is.
    pub(crate) fn raw(&self, text: &[u8]) -> Result<()> {
        let mut out = io::stdout().lock();
        match out.write_all(text).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Error::Closed),
            Err(error) => Err(Error::io("write", "the output", error)),
            Ok(()) => Ok(()),
        }
    }

    fn json(&self, value: &Value) -> Result<()> {
        self.raw(format!("{value:#}\n").as_bytes())
    }

    /// Prints a list; `none` is what people read where it is empty.
    pub(crate) fn list(&self, rows: &[Row], none: &str) -> Result<()> {
        if self.is_json() {
            return self.json(&rows.iter().map(Row::json).collect());
        }
        if rows.is_empty() {
            return self.raw(format!("{none}\n").as_bytes());
        }
        self.raw(format!("{}\n", table(rows, !io::stdout().is_terminal())).as_bytes())
    }

    /// Prints one thing.
    pub(crate) fn one(&self, row: &Row) -> Result<()> {
        if self.is_json() {
            return self.json(&row.json());
        }
        self.raw(details(row).as_bytes())
    }

    /// Prints a line for people, a row for programs.
    pub(crate) fn done(&self, line: &str, row: &Row) -> Result<()> {
        match self.is_json() {
            true => self.json(&row.json()),
            false => self.raw(format!("{}\n", visible(line)).as_bytes()),
        }
    }

    /// Prints a remark for people.
    pub(crate) fn remark(&self, line: &str) {
        if !self.is_json() {
            let _ = writeln!(io::stderr(), "{}", visible(line));
        }
    }

    /// Prints what a job that succeeded still has to say.
    pub(crate) fn warnings(&self, links: &[Link]) {
        let text = match self.is_json() {
            true => {
                let links: Vec<_> = links.iter().map(Link::json).collect();
                format!("{:#}\n", json!({"warnings": links}))
            }
            false => visible(&links_text(links).replace("because: ", "warning: ")),
        };
        let _ = io::stderr().write_all(text.as_bytes());
    }

    /// Prints an error.
    pub(crate) fn error(&self, report: &Report) {
        let text = match self.is_json() {
            true => format!("{:#}\n", report.json()),
            false => visible(&report.text()),
        };
        // There is nowhere left to tell that this failed.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

/// Text as people may see it: what would steer the terminal or turn the direction of the text is written out.
fn visible(text: &str) -> String {
    cim::written_out(text, &['\n', '\t'])
}

/// A table without lines; `whole` keeps long cells on one line.
fn table(rows: &[Row], whole: bool) -> String {
    let Some(first) = rows.first() else {
        return String::new();
    };
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(match whole {
            true => ContentArrangement::Disabled,
            false => ContentArrangement::Dynamic,
        });
    let titles = first.fields.iter().filter_map(|f| f.title.as_ref());
    table.set_header(titles.map(|t| t.to_uppercase()));
    for row in rows {
        let shown = row.fields.iter().filter(|f| f.title.is_some());
        table.add_row(shown.map(|f| visible(&f.text)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// One thing: a line for each value; what takes several lines starts below its title.
fn details(row: &Row) -> String {
    let shown = || row.fields.iter().filter(|f| !f.text.is_empty());
    let titles = shown().filter_map(|f| f.title.as_deref());
    let width = titles.map(|t| t.chars().count()).max().unwrap_or(0) + 1;
    let mut out = String::new();
    for field in shown() {
        let Some(title) = &field.title else { continue };
        let title = format!("{title}:");
        let text = visible(&field.text);
        if text.contains('\n') {
            out.push_str(&format!("{title}\n"));
            for line in text.lines() {
                out.push_str(&format!("  {line}\n"));
            }
        } else {
            out.push_str(&format!("{title:width$} {text}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines() -> Vec<Row> {
        let row = |name: &str, memory, id: &str| {
            Row::new()
                .text("name", "Name", name)
                .size("memory", "Memory", memory)
                .yes("on", "On", Some(memory.is_some()))
                .hidden("id", json!(id))
        };
        vec![
            row("web", Some(512 << 20), "1"),
            row("a-longer-name", None, "2"),
        ]
    }

    #[test]
    fn tables_have_titles_and_aligned_columns_and_no_blanks_at_the_end() {
        assert_eq!(
            table(&machines(), true),
            "NAME           MEMORY   ON\nweb            512 MiB  yes\na-longer-name           no"
        );
    }

    #[test]
    fn what_would_steer_the_terminal_is_written_out() {
        let name = "\u{1b}]0;x\u{7}web\u{202e}";
        let rows = [Row::new().text("name", "Name", name)];
        let shown = "\\u{1b}]0;x\\u{7}web\\u{202e}";
        assert_eq!(table(&rows, true), format!("NAME\n{shown}"));
        assert_eq!(details(&rows[0]), format!("Name: {shown}\n"));
    }

    #[test]
    fn programs_get_numbers_nulls_and_what_tables_leave_out() {
        let json: Value = machines().iter().map(Row::json).collect();
        assert_eq!(
            json.to_string(),
            r#"[{"id":"1","memory":536870912,"name":"web","on":true},{"id":"2","memory":null,"name":"a-longer-name","on":false}]"#
        );
    }

    #[test]
    fn details_align_and_put_tables_below_their_title() {
        let row = Row::new()
            .text("name", "Name", "web")
            .maybe("notes", "Notes", None)
            .text("state", "State now", "off")
            .rows("more", "Machines", &machines());
        assert_eq!(
            details(&row),
            "Name:      web\nState now: off\nMachines:\n  NAME           MEMORY   ON\n  \
             web            512 MiB  yes\n  a-longer-name           no\n"
        );
    }

    #[test]
    fn an_instance_shows_what_is_set() {
        let instance = Instance::new("A")
            .with("Name", "x")
            .with("Gone", cim::Value::Null)
            .with("States", vec![2u16, 3]);
        let row = Row::instance(&instance);
        assert_eq!(details(&row), "Name:   x\nStates:\n  2\n  3\n");
        assert_eq!(
            row.json().to_string(),
            r#"{"Gone":null,"Name":"x","States":[2,3]}"#
        );
    }
}
