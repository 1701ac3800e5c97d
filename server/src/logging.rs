//! Log lines on stderr, for people or for machines, each with the node's name.
//!
//! Invariant: an event is one line, whatever its message and fields hold, and nothing of them acts on a terminal: what clients and
//! other nodes send is logged too.

use std::{fmt, io::IsTerminal as _};

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::{Format, Full, Json, Writer},
    },
    registry::LookupSpan,
};

use hexkv_client::console::{VisibleFields, escape_json};

use crate::config::LogFormat;

/// What is logged before the user's filter is looked at: these two tell more at `info` than their users want to read.
const FILTER_DEFAULT: &str = "info,openraft=error,sled=warn";

/// Why logging does not start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter does not parse.
    #[error("log filter: {0}")]
    Filter(#[from] ParseError),
    /// The process has a logger already.
    #[error("logging was started before")]
    Started(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// The filter `text` on top of the defaults: `info`, `error` for openraft and `warn` for sled unless `text` names them.
///
/// # Errors
/// When it is not made of levels and `target=level` pairs with commas between them.
pub fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(format!("{FILTER_DEFAULT},{text}"))
}

/// Starts logging to stderr for the whole process; `node` stands in each line. Colours only on a terminal, and not where
/// `NO_COLOR` is set.
///
/// # Errors
/// See [`LoggingError`].
pub fn init(format: LogFormat, filter_text: &str, node: &str) -> Result<(), LoggingError> {
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = subscriber(format, filter(filter_text)?, node, colours, std::io::stderr);
    Ok(tracing::subscriber::set_global_default(subscriber)?)
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    node: &str,
    colours: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(writer);
    let node = node.to_owned();
    match format {
        LogFormat::Human => {
            let line = HumanLine { node, line: Format::default() };
            Box::new(builder.fmt_fields(VisibleFields).event_format(line).finish())
        }
        LogFormat::Json => {
            let line = Format::default().json().flatten_event(true).with_current_span(false);
            Box::new(builder.json().event_format(JsonLine { node, line }).finish())
        }
    }
}

/// `NODE TIME LEVEL ...`
struct HumanLine {
    node: String,
    line: Format<Full>,
}

impl<S, N> FormatEvent<S, N> for HumanLine
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(writer, "{} ", self.node)?;
        self.line.format_event(context, writer, event)
    }
}

/// `{"node":NODE,"timestamp":...}`
struct JsonLine {
    node: String,
    line: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.line.format_event(context, Writer::new(&mut line), event)?;
        let line = escape_json(line);
        let rest = line.strip_prefix('{').ok_or(fmt::Error)?;
        let node = serde_json::Value::from(self.node.as_str());
        write!(writer, "{{\"node\":{node},{rest}")
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `log` logs, line by line.
    fn logged(format: LogFormat, filter_text: &str, log: impl FnOnce()) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            subscriber(format, filter(filter_text).unwrap(), "hex_hub1@127.0.0.1", false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn human_lines_begin_with_the_node_and_have_no_escapes() {
        let lines = logged(LogFormat::Human, "info", || tracing::info!(port = 4000, "ready"));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("hex_hub1@127.0.0.1 "), "{}", lines[0]);
        assert!(lines[0].contains("INFO") && lines[0].ends_with("ready port=4000"), "{}", lines[0]);
        assert!(!lines[0].contains('\u{1b}'));
    }

    #[test]
    fn json_lines_are_objects_with_the_node() {
        let lines = logged(LogFormat::Json, "info", || {
            let _span = tracing::info_span!("request", id = 7).entered();
            tracing::warn!(port = 4000, "a \"quoted\" message");
        });
        assert_eq!(lines.len(), 1);
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["node"], "hex_hub1@127.0.0.1");
        assert_eq!(line["message"], "a \"quoted\" message");
        assert_eq!((&line["level"], &line["port"]), (&"WARN".into(), &4000.into()));
        assert_eq!(line["spans"][0]["id"], 7);
    }

    #[test]
    fn values_forge_no_line_and_act_on_no_terminal() {
        const FORGED: &str = "x\nhex_hub1@127.0.0.1 ERROR forged\r\u{1b}[2J\u{9b}1m\u{7f}\u{202e}";
        let failed = || io::Error::other(FORGED);
        for format in [LogFormat::Human, LogFormat::Json] {
            let lines = logged(format, "info", || {
                let _span = tracing::info_span!("request", name = %FORGED).entered();
                tracing::warn!("a message with {FORGED}");
                tracing::warn!(shown = %FORGED, debug = ?FORGED, plain = FORGED, error = %failed(), "fields");
                tracing::warn!(error = &failed() as &dyn std::error::Error, "an error");
            });
            assert_eq!(lines.len(), 3, "one line an event: {lines:?}");
            for line in lines {
                assert!(!line.contains(hexkv_client::console::acts_on_terminal), "{line:?}");
                assert!(line.contains("forged"), "{line}");
                if format == LogFormat::Json {
                    serde_json::from_str::<serde_json::Value>(&line).expect("it stays JSON");
                }
            }
        }
    }

    #[test]
    fn the_filter_stands_on_the_defaults() {
        let log = || {
            tracing::debug!("own debug");
            tracing::info!("own info");
            tracing::info!(target: "openraft::core", "raft info");
            tracing::warn!(target: "sled::tree", "sled warn");
        };
        for (text, expected) in [
            ("info", &["own info", "sled warn"][..]),
            ("debug", &["own debug", "own info", "sled warn"]),
            ("warn", &["sled warn"]),
            ("openraft=info", &["own info", "raft info", "sled warn"]),
            ("error,sled=error", &[]),
        ] {
            let lines = logged(LogFormat::Human, text, log);
            assert_eq!(lines.len(), expected.len(), "{text}: {lines:?}");
            for (line, end) in lines.iter().zip(expected) {
                assert!(line.ends_with(end), "{text}: {lines:?}");
            }
        }
    }

    #[test]
    fn a_wrong_filter_is_an_error() {
        assert!(filter("hexkv_server=loud").is_err());
        assert!(filter("a=b=c").is_err());
    }
}
