//! `mef keys generate [FILE]` and `mef keys public [FILE|-]`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::engine::general_purpose::STANDARD as BASE64;
use base64::Engine as _;
use clap::{Args, Subcommand};
use mef_crypto::keys::{load_private_key, write_private_key, KEY_LEN};
use mef_crypto::{KeyError, PrivateKey};

/// No private key is longer than this in base64, newlines included.
const MAX_INPUT: u64 = 256;

/// `mef keys`.
#[derive(Clone, Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum KeysCommand {
    /// Make a private key: in FILE (mode 0600), with its public key on standard output; without FILE the private key goes there
    Generate { file: Option<PathBuf> },
    /// Print the public key of the private key in FILE, or of the one on standard input (`-`, the default)
    Public { file: Option<PathBuf> },
}

/// Why a command about keys failed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("cannot get random bytes from the system: {0}; nothing was written")]
    Random(String),
    #[error("standard input: expected one line with the base64 of a 32-byte private key; pipe what `mef keys generate` prints")]
    Input,
    #[error("cannot read or write: {0}")]
    Io(#[from] io::Error),
}

/// Runs `mef keys`; 0 on success, 2 with a message on standard error otherwise.
pub fn main(args: &KeysArgs) -> ExitCode {
    let mut out = io::stdout().lock();
    let done = match &args.command {
        KeysCommand::Generate { file } => generate(file.as_deref(), &mut out),
        KeysCommand::Public { file } => public(file.as_deref(), &mut io::stdin().lock(), &mut out),
    };
    match done.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Nobody is left to tell if this fails too.
            let _ = writeln!(io::stderr(), "mef keys: {e}");
            ExitCode::from(2)
        }
    }
}

/// Makes a private key: writes it to `file` and its public key to `out`, or without a file the private key to `out`.
///
/// # Errors
/// [`KeyError::Exists`] if there is such a file: keys are never overwritten.
pub fn generate(file: Option<&Path>, out: &mut dyn Write) -> Result<(), KeysError> {
    let mut entropy = [0; KEY_LEN];
    getrandom::fill(&mut entropy).map_err(|e| KeysError::Random(e.to_string()))?;
    let key = PrivateKey::generate(entropy);
    match file {
        Some(file) => {
            write_private_key(file, &key)?;
            writeln!(out, "{}", key.public())?;
        }
        // X25519 clamps the key on use, so these bytes and the key are the same identity.
        None => writeln!(out, "{}", BASE64.encode(entropy))?,
    }
    Ok(())
}

/// Writes to `out` the public key of the private one in `file`; `-` or none means `input`.
///
/// # Errors
/// [`KeyError`] for the file, [`KeysError::Input`] for what is no key on `input`.
pub fn public(
    file: Option<&Path>,
    input: &mut dyn Read,
    out: &mut dyn Write,
) -> Result<(), KeysError> {
    let key = match file.filter(|f| *f != Path::new("-")) {
        Some(file) => load_private_key(file)?,
        None => {
            let mut text = String::new();
            input
                .take(MAX_INPUT)
                .read_to_string(&mut text)
                .map_err(|e| match e.kind() {
                    io::ErrorKind::InvalidData => KeysError::Input,
                    _ => e.into(),
                })?;
            let bytes = BASE64
                .decode(text.trim())
                .ok()
                .and_then(|b| <[u8; KEY_LEN]>::try_from(b).ok());
            PrivateKey::from_bytes(bytes.ok_or(KeysError::Input)?)
        }
    };
    writeln!(out, "{}", key.public())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use mef_crypto::PublicKey;

    use super::*;

    fn run(f: impl FnOnce(&mut dyn Write) -> Result<(), KeysError>) -> Result<String, KeysError> {
        let mut out = Vec::new();
        f(&mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_generated_file_is_private_and_gives_its_public_key_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.key");
        let shown = run(|out| generate(Some(&file), out)).unwrap();
        assert!(shown.trim().parse::<PublicKey>().is_ok(), "{shown}");
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            run(|out| public(Some(&file), &mut io::empty(), out)).unwrap(),
            shown
        );
        let again = run(|out| generate(Some(&file), out));
        assert!(matches!(
            again,
            Err(KeysError::Key(KeyError::Exists { .. }))
        ));
    }

    #[test]
    fn a_printed_key_is_accepted_on_standard_input_and_in_a_file() {
        let private = run(|out| generate(None, out)).unwrap();
        let from_input = run(|out| public(None, &mut private.as_bytes(), out)).unwrap();
        let dash = run(|out| public(Some(Path::new("-")), &mut private.as_bytes(), out)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.key");
        std::fs::write(&file, &private).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let from_file = run(|out| public(Some(&file), &mut io::empty(), out)).unwrap();
        assert_eq!((&from_input, &from_input), (&dash, &from_file));
        assert_ne!(private, run(|out| generate(None, out)).unwrap());
    }

    #[test]
    fn what_is_no_key_is_refused_without_repeating_it() {
        let long = "A".repeat(1000);
        for bad in [&b""[..], b"secret", b"\xff\xfe", long.as_bytes()] {
            let error = run(|out| public(None, &mut &bad[..], out)).unwrap_err();
            assert!(matches!(error, KeysError::Input), "{error}");
            assert!(!error.to_string().contains("secret"));
        }
    }
}
