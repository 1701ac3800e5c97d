//! The secret that the nodes of a cluster share: given, or kept in a private file that the first node creates, so that
//! the nodes of one user on one machine trust each other.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    error::ConfigError,
    value::{COOKIE_BYTES_ADVISED, COOKIE_BYTES_MAX, COOKIE_BYTES_MIN, MAKES_COOKIE, is_cookie},
};

/// Random bytes of a cookie that a node makes up.
const COOKIE_RANDOM_BYTES: usize = 32;
/// Permission bits that let others than the owner in.
const MODE_OF_OTHERS: u32 = 0o077;

/// A shared secret. Never shown, by `Debug` either.
#[derive(Clone, PartialEq, Eq)]
pub struct Cookie(String);

impl Cookie {
    pub(super) fn new(text: String) -> Self {
        assert!(is_cookie(&text), "a cookie is checked before");
        Self(text)
    }

    /// What to do about a cookie that can be guessed, if it can.
    pub fn weakness(&self) -> Option<String> {
        (self.0.len() < COOKIE_BYTES_ADVISED).then(|| {
            format!(
                "the cookie has fewer than {COOKIE_BYTES_ADVISED} characters and can be guessed; make a longer one (`{MAKES_COOKIE}`) and give it to all nodes while they are stopped"
            )
        })
    }

    /// The secret's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie(hidden)")
    }
}

/// Where the cookie comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CookieSource {
    /// `COOKIE`.
    Given(Cookie),
    /// A file; created with a random cookie where it does not exist.
    File {
        /// The file.
        path: PathBuf,
        /// Refuse it when others than its owner can read it. Not for a file that the user named: secrets that are
        /// mounted into containers often can be read by all.
        private: bool,
    },
    /// No `COOKIE`, no `COOKIE_FILE`, and no `HOME` to keep one in.
    Nowhere,
}

impl CookieSource {
    /// The cookie: the one given, or the file's; several nodes that start at once agree on the one that is created.
    ///
    /// # Errors
    /// [`ConfigError::CookieFile`] when the file cannot be read or created, is open to others, or holds no cookie;
    /// [`ConfigError::Conflict`] when there is no place to keep it.
    pub fn load(&self) -> Result<Cookie, ConfigError> {
        match self {
            Self::Given(cookie) => Ok(cookie.clone()),
            Self::File { path, private } => load_file(path, *private),
            Self::Nowhere => {
                Err(ConfigError::Conflict("no cookie, and HOME is not set: set COOKIE or COOKIE_FILE".to_owned()))
            }
        }
    }
}

fn load_file(path: &Path, private: bool) -> Result<Cookie, ConfigError> {
    let failed = |reason: String| ConfigError::CookieFile { path: path.to_owned(), reason };
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_once(path).and_then(|()| fs::File::open(path)).map_err(|error| {
                failed(format!("it does not exist and cannot be created ({error}); set COOKIE, or COOKIE_FILE"))
            })?
        }
        opened => opened.map_err(|error| failed(error.to_string()))?,
    };
    let mode = file.metadata().map_err(|error| failed(error.to_string()))?.mode();
    if private && mode & MODE_OF_OTHERS != 0 {
        return Err(failed(format!(
            "other users may access it (mode {:o}); make it private: chmod 600 {}",
            mode & 0o777,
            path.display()
        )));
    }
    let mut bytes = Vec::new();
    // One byte for a newline at the end, one to notice that there is more.
    file.take(COOKIE_BYTES_MAX as u64 + 2).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    let text = text.trim();
    if !is_cookie(text) {
        return Err(failed(format!(
            "it must hold {COOKIE_BYTES_MIN} to {COOKIE_BYTES_MAX} visible ASCII characters and nothing else; `{MAKES_COOKIE}` makes some"
        )));
    }
    Ok(Cookie::new(text.to_owned()))
}

/// Creates `path` with a random cookie, unless it is there by now. It appears complete or not at all.
fn create_once(path: &Path) -> io::Result<()> {
    let random: [u8; COOKIE_RANDOM_BYTES] = rand::random();
    let cookie: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
    name.push(format!(".{:016x}", rand::random::<u64>()));
    let temporary = path.with_file_name(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(cookie.as_bytes()).and_then(|()| file.sync_all());
    // A link, unlike a rename, does not replace the cookie of a node that was faster.
    let linked = written.and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn source(path: &Path, private: bool) -> CookieSource {
        CookieSource::File { path: path.to_owned(), private }
    }

    #[test]
    fn nodes_that_start_at_once_create_one_private_cookie() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".hexkv.cookie");
        let cookies: Vec<Cookie> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| source(&path, true).load().unwrap())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert_eq!(cookies[0].as_bytes().len(), 2 * COOKIE_RANDOM_BYTES);
        assert!(cookies.iter().all(|cookie| cookie == &cookies[0]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays behind");
        assert_eq!(source(&path, true).load().unwrap(), cookies[0]);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_unless_the_user_named_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cookie");
        fs::write(&path, "a-secret\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = source(&path, true).load().unwrap_err().to_string();
        assert!(error.contains("chmod 600") && error.contains("644"), "{error}");
        assert_eq!(source(&path, false).load().unwrap().as_bytes(), b"a-secret");
    }

    #[test]
    fn a_file_without_a_cookie_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cookie");
        for content in [
            &b""[..],
            b"\n",
            b"7-bytes\n",
            b"two words",
            b"\xff\xfe",
            "caf\u{e9}".as_bytes(),
            &[b'x'; COOKIE_BYTES_MAX + 1],
        ] {
            fs::write(&path, content).unwrap();
            let error = source(&path, false).load().unwrap_err().to_string();
            assert!(error.contains("visible ASCII"), "{error}");
        }
        fs::write(&path, [b'x'; COOKIE_BYTES_MAX]).unwrap();
        assert_eq!(source(&path, false).load().unwrap().as_bytes().len(), COOKIE_BYTES_MAX);
    }

    #[test]
    fn a_short_cookie_is_taken_with_advice() {
        for (text, weak) in [("8-bytes.", true), ("hex_hub_cluster", true), ("16-bytes-are-fine", false)] {
            let advice = Cookie::new(text.into()).weakness();
            assert_eq!(
                advice.as_ref().is_some_and(|advice| advice.contains("openssl rand")),
                weak,
                "{text}: {advice:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_created_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("cookie");
        let error = source(&path, true).load().unwrap_err().to_string();
        assert!(error.contains("missing/cookie"), "{error}");
        let error = CookieSource::Nowhere.load().unwrap_err().to_string();
        assert!(error.contains("COOKIE_FILE"), "{error}");
    }

    #[test]
    fn a_cookie_is_not_shown() {
        assert_eq!(format!("{:?}", CookieSource::Given(Cookie::new("a-secret".into()))), "Given(Cookie(hidden))");
    }
}
