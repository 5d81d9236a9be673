//! Servers of each cloud's interface, on this machine.

use super::Store;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use towline_tests::PATIENCE;
use towline_tests::relay::free_port;

const BUCKET: &str = "towline";

/// A running one, with an empty bucket.
pub struct Server {
    child: Child,
    store: Store,
}

impl Server {
    /// moto, from PyPI.
    pub fn s3() -> Server {
        let port = free_port();
        let environment = [
            ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_ACCESS_KEY_ID", "test".into()),
            ("AWS_SECRET_ACCESS_KEY", "test".into()),
            ("AWS_REGION", "us-east-1".into()),
        ];
        let words = ["-H", "127.0.0.1", "-p", &port.to_string()];
        Server::start("s3", "moto_server", &words, &environment, || put(port, BUCKET))
    }

    /// Azurite, from npm.
    pub fn azure() -> Server {
        let port = free_port();
        let environment = [
            ("AZURE_STORAGE_USE_EMULATOR", "true".into()),
            ("AZURITE_BLOB_STORAGE_URL", format!("http://127.0.0.1:{port}")),
        ];
        let number = port.to_string();
        let words = ["--blobHost", "127.0.0.1", "--blobPort", &number, "--inMemoryPersistence"];
        let words = [&words[..], &["--skipApiVersionCheck", "--disableTelemetry"]].concat();
        Server::start("az", "azurite-blob", &words, &environment, || {
            python("make_container.py", &[&number, BUCKET])
        })
    }

    /// Ours, of Google's interface: there is none to be had by package name that keeps preconditions.
    pub fn google() -> Server {
        let port = free_port();
        let account = format!(
            "{{\"gcs_base_url\": \"http://127.0.0.1:{port}\", \"disable_oauth\": true, \
             \"client_email\": \"\", \"private_key\": \"\", \"private_key_id\": \"\"}}"
        );
        let environment = [("GOOGLE_SERVICE_ACCOUNT_KEY", account)];
        let (script, number) = (beside("gcs_server.py"), port.to_string());
        let words = [script.as_os_str(), OsStr::new(&number), OsStr::new(BUCKET)];
        Server::start("gs", "python3", &words, &environment, || put(port, "towline/made"))
    }

    fn start(
        scheme: &str,
        program: &str,
        words: &[impl AsRef<OsStr>],
        environment: &[(&'static str, String)],
        make_bucket: impl Fn() -> std::io::Result<()>,
    ) -> Server {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
        let url = format!("{scheme}://{BUCKET}/some/prefix");
        let server = Server { child, store: Store { url, environment: environment.to_vec() } };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = make_bucket() {
            assert!(Instant::now() < deadline, "{program} does not make a bucket: {error}");
            // It says nothing that could be waited for.
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    pub fn store(&self) -> Store {
        self.store.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn beside(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/store").join(file)
}

fn python(script: &str, words: &[&str]) -> std::io::Result<()> {
    let done = Command::new("python3").arg(beside(script)).args(words).output()?;
    let said = || std::io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned());
    if done.status.success() { Ok(()) } else { Err(said()) }
}

fn put(port: u16, path: &str) -> std::io::Result<()> {
    let mut server = std::net::TcpStream::connect(("127.0.0.1", port))?;
    let request = format!(
        "PUT /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    server.write_all(request.as_bytes())?;
    let mut answer = String::new();
    server.read_to_string(&mut answer)?;
    let made = answer.split_whitespace().nth(1) == Some("200");
    if made { Ok(()) } else { Err(std::io::Error::other(answer)) }
}
