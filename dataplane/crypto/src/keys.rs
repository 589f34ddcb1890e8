//! The identity of a node: an X25519 key pair (RFC 7748), the public half
//! written as base64, the private half kept in a file that only its owner can
//! read. Two routers know each other by public key and nothing else.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::engine::general_purpose::STANDARD as BASE64;
use base64::Engine as _;
use x25519_dalek::{x25519, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

/// Length of a key of either kind, bytes.
pub const KEY_LEN: usize = 32;
/// The one file mode a private key may have.
const KEY_FILE_MODE: u32 = 0o600;
/// More than a key, its newline and an editor's blank lines need.
const KEY_FILE_MAX: u64 = 256;

/// Why a key, or a key file, is refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{}: cannot read the private key: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: cannot write the private key: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{}: not a regular file; a private key is kept in one", path.display())]
    NotAFile { path: PathBuf },
    #[error("{p}: file mode is {mode:04o}, a private key must have 0600; run: chmod 0600 '{p}'", p = path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("{}: exists already, a key is never overwritten; choose another name or remove it yourself", path.display())]
    Exists { path: PathBuf },
    /// Says nothing of the content, which may be most of a secret.
    #[error("{}: expected one line with the base64 of 32 bytes; make a key with: mef keys generate", path.display())]
    Content { path: PathBuf },
    #[error("public key `{found}`: expected the base64 of 32 bytes (44 characters ending in `=`); print a router's with: mef keys public")]
    PublicKeyText { found: String },
    #[error("public key `{found}` is a point of small order, which makes every secret shared with it zero; it is nobody's key")]
    SmallOrder { found: String },
}

/// A node's private key, wiped when dropped and never printed.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; KEY_LEN]>);

impl PrivateKey {
    /// Makes a key of 32 bytes that must come from a cryptographic random source.
    pub fn generate(mut entropy: [u8; KEY_LEN]) -> Self {
        // Clamped here as RFC 7748 section 5 does on use, so that one key has one text form.
        let [first, .., last] = &mut entropy;
        *first &= 0b1111_1000;
        *last = *last & 0b0111_1111 | 0b0100_0000;
        let key = Self::from_bytes(entropy);
        entropy.zeroize();
        key
    }

    /// Takes the bytes of an existing key.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn public(&self) -> PublicKey {
        let secret = StaticSecret::from(*self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    pub(crate) fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    fn from_text(text: &str) -> Option<Self> {
        decode(text).map(Self)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

/// A node's public key: its name to every other node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Takes a key's bytes.
    ///
    /// # Errors
    /// [`KeyError::SmallOrder`] if every shared secret with it is zero (RFC 7748, section 6.1).
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Result<Self, KeyError> {
        // Any scalar does: clamping makes all of them multiples of the cofactor.
        if x25519([1; KEY_LEN], bytes) == [0; KEY_LEN] {
            return Err(KeyError::SmallOrder {
                found: BASE64.encode(bytes),
            });
        }
        Ok(Self(bytes))
    }

    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match decode(text) {
            Some(bytes) => Self::from_bytes(*bytes),
            None => Err(KeyError::PublicKeyText {
                found: text.chars().take(64).collect(),
            }),
        }
    }
}

fn decode(text: &str) -> Option<Zeroizing<[u8; KEY_LEN]>> {
    let bytes = Zeroizing::new(BASE64.decode(text).ok()?);
    Some(Zeroizing::new(
        <[u8; KEY_LEN]>::try_from(bytes.as_slice()).ok()?,
    ))
}

/// Reads a private key from a file of mode 0600 that holds its base64.
///
/// # Errors
/// Any other mode is refused ([`KeyError::Mode`]), and so is anything that is no
/// regular file or does not hold exactly one key.
pub fn load_private_key(path: impl AsRef<Path>) -> Result<PrivateKey, KeyError> {
    let path = path.as_ref();
    let read_error = |source| KeyError::Read {
        path: path.into(),
        source,
    };
    // Looked at before it is opened: opening a FIFO waits for its writer.
    if !fs::metadata(path).map_err(read_error)?.is_file() {
        return Err(KeyError::NotAFile { path: path.into() });
    }
    let file = File::open(path).map_err(read_error)?;
    let metadata = file.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(KeyError::NotAFile { path: path.into() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode != KEY_FILE_MODE {
        return Err(KeyError::Mode {
            path: path.into(),
            mode,
        });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(KEY_FILE_MAX as usize + 1));
    file.take(KEY_FILE_MAX + 1)
        .read_to_end(&mut text)
        .map_err(read_error)?;
    std::str::from_utf8(&text)
        .ok()
        .filter(|t| t.len() as u64 <= KEY_FILE_MAX)
        .and_then(|t| PrivateKey::from_text(t.trim()))
        .ok_or_else(|| KeyError::Content { path: path.into() })
}

/// Writes `key` to a new file of mode 0600.
///
/// # Errors
/// [`KeyError::Exists`] if there is something at `path` already, which is left as it is;
/// after any other error nothing is left behind.
pub fn write_private_key(path: impl AsRef<Path>, key: &PrivateKey) -> Result<(), KeyError> {
    let path = path.as_ref();
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(KEY_FILE_MODE)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.into() },
            _ => KeyError::Write {
                path: path.into(),
                source,
            },
        })?;
    let text = Zeroizing::new(BASE64.encode(key.as_bytes()) + "\n");
    // The mode again, because an unusual umask may have taken bits away.
    let written = file
        .set_permissions(Permissions::from_mode(KEY_FILE_MODE))
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all());
    written.map_err(|source| {
        // The error that led here says more than one about the removal would.
        let _ = fs::remove_file(path);
        KeyError::Write {
            path: path.into(),
            source,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc7748_section_6_1_key_pair() {
        let private = *b"\x77\x07\x6d\x0a\x73\x18\xa5\x7d\x3c\x16\xc1\x72\x51\xb2\x66\x45\
                         \xdf\x4c\x2f\x87\xeb\xc0\x99\x2a\xb1\x77\xfb\xa5\x1d\xb9\x2c\x2a";
        let public = *b"\x85\x20\xf0\x09\x89\x30\xa7\x54\x74\x8b\x7d\xdc\xb4\x3e\xf7\x5a\
                        \x0d\xbf\x3a\x0d\x26\x38\x1a\xf4\xeb\xa4\xa9\x8e\xaa\x9b\x4e\x6a";
        assert_eq!(PrivateKey::generate(private).public().as_bytes(), &public);
        assert_eq!(PrivateKey::from_bytes(private).public().as_bytes(), &public);
    }

    #[test]
    fn a_public_key_survives_its_text_form() {
        let key = PrivateKey::generate([7; 32]).public();
        let text = key.to_string();
        assert_eq!(text.len(), 44);
        assert_eq!(text.parse::<PublicKey>().unwrap(), key);
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let good = PrivateKey::generate([7; 32]).public().to_string();
        let cut = &good[..43];
        for bad in [
            "",
            "abc",
            cut,
            &format!("{good}="),
            &format!("{good} "),
            &BASE64.encode([3; 31]),
        ] {
            assert!(
                matches!(
                    bad.parse::<PublicKey>(),
                    Err(KeyError::PublicKeyText { .. })
                ),
                "{bad}"
            );
        }
        for point in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            let text = BASE64.encode(point);
            assert!(
                matches!(text.parse::<PublicKey>(), Err(KeyError::SmallOrder { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn a_written_key_is_read_back_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        let key = PrivateKey::generate([9; 32]);
        write_private_key(&path, &key).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        assert_eq!(load_private_key(&path).unwrap().as_bytes(), key.as_bytes());

        let other = PrivateKey::generate([10; 32]);
        assert!(matches!(
            write_private_key(&path, &other),
            Err(KeyError::Exists { .. })
        ));
        assert_eq!(load_private_key(&path).unwrap().as_bytes(), key.as_bytes());
    }

    #[test]
    fn any_other_mode_is_refused_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write_private_key(&path, &PrivateKey::generate([9; 32])).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o400, 0o700, 0o4600, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = load_private_key(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::Mode { mode: m, .. } if m == mode),
                "{mode:o}: {error}"
            );
            let text = error.to_string();
            assert!(
                text.contains(&format!("chmod 0600 '{}'", path.display())),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            load_private_key(dir.path()),
            Err(KeyError::NotAFile { .. })
        ));
        assert!(matches!(
            load_private_key(dir.path().join("none")),
            Err(KeyError::Read { .. })
        ));
        let good = BASE64.encode([5; 32]);
        for content in [
            "".into(),
            "secret".into(),
            BASE64.encode([5; 33]),
            format!("{good}\n{good}\n"),
            " ".repeat(300) + &good,
        ] {
            let path = dir.path().join("bad.key");
            fs::write(&path, &content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let error = load_private_key(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::Content { .. }),
                "{content:?}: {error}"
            );
            assert!(!error.to_string().contains(&good));
        }
    }

    #[test]
    fn a_private_key_is_not_printed() {
        let key = PrivateKey::generate([9; 32]);
        let shown = format!("{key:?}");
        assert!(!shown.contains(&BASE64.encode(key.as_bytes())), "{shown}");
    }
}
