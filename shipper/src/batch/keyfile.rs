//! Key files: the secrets by which a group's batches are sealed, one a line, oldest
//! first. The last line seals; all of them open.
//!
//! ```text
//! # anything
//! towline-key-1 <id, 32 hexadecimal digits> <secret, 64>
//! ```
//!
//! The id follows from the secret, so a wrong secret under a known id is found here and
//! never looks like a damaged batch later.

use super::key::{GroupKey, KEY_BYTES, KeyId, Keyring};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::parse_hex;
use crate::pki::write_private;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const KIND: &str = "towline-key-1";
/// A thousand rotations; whatever is larger is no key file.
const FILE_BYTES_MAX: u64 = 128 << 10;

/// Makes a file with one new key and answers the key's id.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when the file exists: batches may be sealed with what is
/// in it.
pub fn make(path: &Path) -> Result<KeyId> {
    if path.exists() {
        let what = format!(
            "{} exists and is not overwritten: batches may be sealed with its keys; say --rotate to \
             add a key to it",
            path.display()
        );
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    add_key(path, "# Keys of sealed batches, oldest first; the last one seals. Keep secret.\n")
}

/// Adds a new key, with which batches are sealed from then on; the others stay. Answers
/// its id.
pub fn rotate(path: &Path) -> Result<KeyId> {
    let text = read(path)?;
    parse(&text, path)?;
    add_key(path, &text)
}

fn add_key(path: &Path, before: &str) -> Result<KeyId> {
    let secret: [u8; KEY_BYTES] = rand::random();
    let key = GroupKey::of_secret(secret)?;
    let mut text = before.to_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let _ = write!(text, "{KIND} {} ", key.id);
    secret.iter().for_each(|byte| {
        let _ = write!(text, "{byte:02x}");
    });
    text.push('\n');
    write_private(path, text.as_bytes())?;
    Ok(key.id)
}

/// All keys of a file.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] with what to do: the file is missing, is readable by
/// others, holds no key, or holds something else.
pub fn load(path: &Path) -> Result<Keyring> {
    parse(&read(path)?, path)
}

fn read(path: &Path) -> Result<String> {
    let unusable = |e| {
        let what = format!("cannot read the key file {}", path.display());
        Error::caused(ErrorKind::InvalidInput, what, e)
    };
    let file = File::open(path).map_err(unusable)?;
    let mode = file.metadata().map_err(unusable)?.permissions().mode();
    if mode & 0o077 != 0 {
        let path = path.display();
        let what = format!("others than its owner may use the key file {path}: chmod 600 {path}");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unusable)?;
    Ok(text)
}

fn parse(text: &str, path: &Path) -> Result<Keyring> {
    let mut keys = Keyring::default();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = parse_line(line).ok_or_else(|| {
            // Never the line itself: it may be a secret with a slip.
            let what = format!(
                "{}:{number}: no key: a line is `{KIND} ID SECRET` as `towline pki key` wrote it",
                path.display()
            );
            Error::new(ErrorKind::InvalidInput, what)
        })?;
        keys.add(key);
    }
    if keys.newest().is_none() {
        let what = format!("{} holds no key: make one with `towline pki key FILE`", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    Ok(keys)
}

fn parse_line(line: &str) -> Option<GroupKey> {
    let mut words = line.split_ascii_whitespace();
    let (kind, id, secret) = (words.next()?, words.next()?, words.next()?);
    let id: KeyId = id.parse().ok()?;
    let key = GroupKey::of_secret(parse_hex(secret).ok()?).ok()?;
    (kind == KIND && words.next().is_none() && key.id == id).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(keys: &Keyring) -> usize {
        keys.ids().count()
    }

    #[test]
    fn a_rotated_file_seals_with_the_newest_key_and_opens_with_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("erp.key");
        let first = make(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = rotate(&path).unwrap();
        assert_ne!(first, second);
        let keys = load(&path).unwrap();
        assert_eq!(keys.newest().unwrap().id, second);
        assert!(keys.get(first).is_ok());
        assert_eq!(ids(&keys), 2);
        assert!(make(&path).unwrap_err().to_string().contains("--rotate"));
        assert_eq!(ids(&load(&path).unwrap()), 2, "nothing was overwritten");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("erp.key");
        make(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = load(&path).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{mode:o}: {error}");
        }
    }

    #[test]
    fn a_line_with_a_slip_is_named_by_its_number_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("erp.key");
        make(&path).unwrap();
        let sound = std::fs::read_to_string(&path).unwrap();
        let digit = |at: usize| if sound.as_bytes()[at] == b'0' { "1" } else { "0" };
        let secret_at = sound.trim_end().len() - 1;
        let id_at = sound.find(KIND).unwrap() + KIND.len() + 1;
        for at in [secret_at, id_at] {
            let mut text = sound.clone();
            text.replace_range(at..=at, digit(at));
            write_private(&path, text.as_bytes()).unwrap();
            let error = load(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("erp.key:2:"), "{error}");
            assert!(!error.to_string().contains(&text[secret_at - 20..secret_at]), "{error}");
        }
        for text in ["", "# nothing\n", "towline-key-1 00\n", "\u{fffd}"] {
            write_private(&path, text.as_bytes()).unwrap();
            assert_eq!(load(&path).unwrap_err().kind(), ErrorKind::InvalidInput, "{text:?}");
        }
        assert_eq!(load(&dir.path().join("none")).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
