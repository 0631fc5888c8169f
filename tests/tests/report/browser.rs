//! A headless Chromium in a namespace of its own, driven over WebDriver.

use std::{
    fmt,
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fantoccini::{Client, ClientBuilder, wd::WebDriverCompatibleCommand};
use peak_tests::{Namespace, Running, eventually, scratch};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{self, Runtime};

/// Of a desk's screen, and of a small phone's.
pub(crate) const WIDE: u32 = 1280;
pub(crate) const PHONE: u32 = 360;

/// How long a browser may take to start on a machine with much else to do.
const START: Duration = Duration::from_secs(60);
/// Nobody else is in the namespace.
const CHROMIUM: u16 = 9222;
const DRIVER: u16 = 9515;

/// What finds fault with a page.
const LOOK: &str = include_str!("look.js");

/// What the reader prefers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scheme {
    Light,
    Dark,
}

/// A browser with one page. It has a network without anybody in it: what isn't in a page's file stays missing.
pub(crate) struct Browser {
    client: Client,
    runtime: Runtime,
    namespace: Namespace,
    _driver: Running,
    _chromium: Running,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Result<Self> {
        let namespace = Namespace::new("browser")?;
        let profile = scratch()?;
        // Started by us rather than by the driver: whatever way a test ends, it ends too.
        let mut chromium = Command::new("chromium");
        chromium
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-quic",
            ])
            .args([
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                // It misses a desktop, and says so.
                "--log-level=3",
            ])
            .arg(format!("--remote-debugging-port={CHROMIUM}"))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdout(Stdio::null());
        let chromium = namespace.spawn(&mut chromium)?;
        let mut driver = Command::new("chromedriver");
        driver.arg(format!("--port={DRIVER}")).stdout(Stdio::null());
        let driver = namespace.spawn(&mut driver)?;
        for (what, port) in [("chromium", CHROMIUM), ("chromedriver", DRIVER)] {
            eventually(what, START, || {
                Ok(namespace.run(|| TcpStream::connect(("127.0.0.1", port)).ok()))
            })?;
        }
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let capabilities = json!({
            "goog:chromeOptions": {"debuggerAddress": format!("127.0.0.1:{CHROMIUM}")},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let Value::Object(capabilities) = capabilities else {
            unreachable!("an object");
        };
        let client = namespace.run(|| {
            let mut builder =
                ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
            builder.capabilities(capabilities);
            runtime.block_on(builder.connect(&format!("http://127.0.0.1:{DRIVER}")))
        })?;
        Ok(Self {
            client,
            runtime,
            namespace,
            _driver: driver,
            _chromium: chromium,
            _profile: profile,
        })
    }

    /// Waits for what the driver says; its connections are made in the namespace.
    fn wait<T: Send>(&self, answer: impl Future<Output = T> + Send) -> T {
        self.namespace.run(|| self.runtime.block_on(answer))
    }

    pub(crate) fn open(&self, file: &Path) -> Result<()> {
        Ok(self.wait(self.client.goto(&format!("file://{}", file.display())))?)
    }

    /// What a script returns.
    pub(crate) fn ask(&self, script: &str) -> Result<Value> {
        Ok(self.wait(self.client.execute(script, Vec::new()))?)
    }

    /// Has the page shown on a screen so wide, to somebody who prefers that.
    pub(crate) fn show(&self, width: u32, scheme: Scheme) -> Result<()> {
        let scheme = format!("{scheme:?}").to_lowercase();
        let screen = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE});
        self.devtools("Emulation.setDeviceMetricsOverride", screen)?;
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features)?;
        let wanted = format!(
            "return innerWidth == {width} && matchMedia('(prefers-color-scheme: {scheme})').matches"
        );
        eventually("the screen", START, || {
            Ok((self.ask(&wanted)? == true).then_some(()))
        })
    }

    /// Finds what is wrong with the page (`complaints`), and says how many plots it has, and in what colours.
    pub(crate) fn look(&self) -> Result<Value> {
        self.ask(LOOK)
    }

    /// What the link of that name would save.
    pub(crate) fn saved(&self, name: &str) -> Result<String> {
        let script = format!(
            "const href = document.querySelector('a[download=\"{name}\"]').href;
             const bytes = Uint8Array.from(atob(href.split(',')[1]), c => c.charCodeAt(0));
             return new TextDecoder().decode(bytes)"
        );
        let text = self.ask(&script)?;
        text.as_str().map(ToOwned::to_owned).context("text")
    }

    /// What the console says, since it was asked last.
    pub(crate) fn log(&self) -> Result<Vec<String>> {
        let entries = self.issue("se/log", json!({"type": "browser"}))?;
        let entries = entries.as_array().context("entries")?;
        Ok(entries
            .iter()
            .map(|entry| entry["message"].to_string())
            .collect())
    }

    fn devtools(&self, command: &'static str, parameters: Value) -> Result<Value> {
        self.issue(
            "goog/cdp/execute",
            json!({"cmd": command, "params": parameters}),
        )
    }

    fn issue(&self, path: &'static str, body: Value) -> Result<Value> {
        let answer = self.wait(self.client.issue_cmd(Extension { path, body }))?;
        ensure!(answer.get("error").is_none(), "{path}: {answer}");
        Ok(answer)
    }
}

/// A command of Chromium's driver that isn't in the standard.
struct Extension {
    path: &'static str,
    body: Value,
}

impl fmt::Debug for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.body)
    }
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!(
            "session/{}/{}",
            session.unwrap_or_default(),
            self.path
        ))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}
