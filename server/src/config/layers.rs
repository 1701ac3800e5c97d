//! The three places that options are set in, and which of them wins.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::ArgMatches;

use super::{
    error::ConfigError,
    options::{CONFIG_ENV, CONFIG_FLAG, ENV_OF_OTHERS, ENV_PREFIX, OPTIONS, OptionRow, nearest},
};

/// Largest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where the value of an option comes from. Later ones win over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// This TOML file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
    /// The command line.
    Flag,
}

impl Source {
    /// How an error names the place where `row` was set.
    pub(super) fn origin(&self, row: &OptionRow) -> String {
        match self {
            Self::Default => format!("default of {}", row.env()),
            Self::File(path) => format!("{}: {}", path.display(), row.key),
            Self::Environment(name) => format!("environment variable {name}"),
            Self::Flag => format!("--{}", row.flag()),
        }
    }

    /// Strength without the name: two sources of one kind are equals.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File(_) => 1,
            Self::Environment(_) => 2,
            Self::Flag => 3,
        }
    }
}

/// What was set, by flag, environment and file, before any value is looked at.
pub(super) struct Layers {
    set: BTreeMap<&'static str, (String, Source)>,
    environment: BTreeMap<String, OsString>,
}

impl Layers {
    /// Collects the layers. Names that are nobody's are errors, and so is a file that does not read.
    pub(super) fn collect(
        matches: &ArgMatches,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        // A name that is not UTF-8 is none of ours; an empty value is how compose files leave a variable unset,
        // and means the same in the file.
        let environment: BTreeMap<String, OsString> = environment
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        refuse_unknown_variables(environment.keys())?;
        let mut set = BTreeMap::new();
        let file = matches.get_one::<String>(CONFIG_FLAG).map(PathBuf::from);
        if let Some(path) = file.or_else(|| environment.get(CONFIG_ENV).map(PathBuf::from)) {
            set = read_file(&path)?;
        }
        for row in OPTIONS {
            if let Some(name) = row.env_names().find(|name| environment.contains_key(name)) {
                let source = Source::Environment(name.clone());
                let Some(text) = environment[&name].to_str() else {
                    return Err(ConfigError::value(row, &source, &environment[&name].to_string_lossy()));
                };
                set.insert(row.key, (text.to_owned(), source));
            }
            if let Some(text) = matches.get_one::<String>(row.key) {
                set.insert(row.key, (text.clone(), Source::Flag));
            }
        }
        Ok(Self { set, environment })
    }

    /// What `row` was set to, by the strongest layer that sets it.
    pub(super) fn find(&self, row: &OptionRow) -> Option<&(String, Source)> {
        self.set.get(row.key)
    }

    /// A variable that is no option, such as `HOME`.
    pub(super) fn variable(&self, name: &str) -> Option<&OsString> {
        self.environment.get(name)
    }
}

fn refuse_unknown_variables<'a>(names: impl Iterator<Item = &'a String>) -> Result<(), ConfigError> {
    for name in names {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
        if name == CONFIG_ENV || ENV_OF_OTHERS.contains(&name.as_str()) {
            continue;
        }
        // Options have no prefix: it is the first thing that is tried by mistake.
        let hint = nearest(rest, OPTIONS.iter().flat_map(OptionRow::env_names)).or_else(|| {
            nearest(name, std::iter::once(CONFIG_ENV).chain(ENV_OF_OTHERS.iter().copied()).map(str::to_owned))
        });
        return Err(ConfigError::UnknownVariable { name: name.clone(), hint });
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<BTreeMap<&'static str, (String, Source)>, ConfigError> {
    let failed = |reason: String| ConfigError::File { path: path.to_owned(), reason };
    let mut text = String::new();
    // What has no end has no length either.
    let read = fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    if read.map_err(|error| failed(error.to_string()))? as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("it is too long: at most {FILE_BYTES_MAX} bytes are read")));
    }
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| failed(error.to_string()))?;
    let mut set = BTreeMap::new();
    for (key, value) in table {
        let Some(row) = OPTIONS.iter().find(|row| row.key == key) else {
            let hint = nearest(&key.to_ascii_lowercase(), OPTIONS.iter().map(|row| row.key.to_owned()));
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key, hint });
        };
        let source = Source::File(path.to_owned());
        let text = file_text(&value).ok_or_else(|| ConfigError::value(row, &source, &value.to_string()))?;
        if !text.is_empty() {
            set.insert(row.key, (text, source));
        }
    }
    Ok(set)
}

/// The value as it would stand in a variable: a list of texts is joined by commas. None for what no option takes.
fn file_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Array(items) => {
            items.iter().map(toml::Value::as_str).collect::<Option<Vec<_>>>().map(|items| items.join(","))
        }
        toml::Value::Float(_) | toml::Value::Boolean(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}
