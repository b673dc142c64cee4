//! The log on standard error: a line is what the service wrote, whatever guests, images and clients put into its words.

use std::io::{self, Write};

/// Standard error, with every character written out that would steer a terminal or begin a line of its own. Each write is a line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(one_line(line).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn one_line(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    match text.strip_suffix('\n') {
        Some(text) => cim::written_out(text, &['\t']) + "\n",
        None => cim::written_out(&text, &['\t']),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_begins_a_line_of_its_own_or_steers_the_terminal() {
        let line = "WARN reason=a\nINFO forged\u{1b}[2J \u{202e}\n";
        assert_eq!(
            one_line(line.as_bytes()),
            "WARN reason=a\\u{a}INFO forged\\u{1b}[2J \\u{202e}\n"
        );
    }

    #[test]
    fn the_log_and_the_names_agree_on_what_steers() {
        let all = (0..=0x10_ffff).filter_map(char::from_u32);
        for c in all {
            assert_eq!(cim::steers(c), vmms::names::steers(c), "{c:?}");
        }
    }
}
