//! The tools that operators ask with, as they come and with the options that change what is on the wire.

use std::{collections::BTreeSet, fmt::Write as _, fs, process::Command};

use anyhow::{Result, ensure};
use peak_tests::{Namespace, Net, Peak, pass, scratch};

/// Endpoints of a service whose answer fits neither UDP nor, at 28 bytes each, a frame.
const LARGE: usize = 300;

/// What a tool printed of an answer, as far as the tools agree on how.
#[derive(Debug)]
struct Printed {
    whole: String,
}

impl Printed {
    fn status(&self, status: &str) -> bool {
        self.whole.contains(&format!("status: {status}"))
    }
    /// Whether the header's flags have this one.
    fn flag(&self, flag: &str) -> bool {
        let flags = self
            .whole
            .lines()
            .find(|line| line.to_ascii_lowercase().contains("flags: qr"));
        flags.is_some_and(|line| line.split([' ', ';', ',']).any(|word| word == flag))
    }
    /// The addresses of AAAA records, wherever they stand.
    fn addresses(&self) -> BTreeSet<&str> {
        let fields = self.whole.lines().filter(|line| !line.starts_with(';'));
        fields
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
            .filter(|fields| fields.get(3) == Some(&"AAAA"))
            .filter_map(|fields| fields.get(4).copied())
            .collect()
    }
}

fn run(client: &Namespace, tool: &str, server: &str, arguments: &[&str]) -> Result<Printed> {
    let output = client.run(|| {
        let server = format!("@{server}");
        // One try: a lost answer shall not be made good by a second question.
        let once = if tool == "dig" {
            "+tries=1"
        } else {
            "+retry=0"
        };
        Command::new(tool)
            .args([server.as_str(), once, "+timeout=2"])
            .args(arguments)
            .output()
    })?;
    let whole = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{tool} {arguments:?}: {whole}");
    // Both warn of what they cannot make sense of. Neither the missing recursion nor the zone is that.
    let warning = whole.lines().find(|line| {
        line.to_ascii_lowercase().contains("warning")
            && !line.contains("recursion")
            && !line.contains("Multicast")
    });
    ensure!(warning.is_none(), "{tool} {arguments:?}: {whole}");
    Ok(Printed { whole })
}

fn manifests() -> Result<String> {
    let mut documents = String::new();
    for (service, count) in [("web", 2), ("large", LARGE)] {
        write!(
            documents,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: shop}}\n\
             spec: {{clusterIP: None, ports: [{{port: 80}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {service}-1, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: IPv6\nports: []\nendpoints:\n"
        )?;
        for i in 1..=count {
            writeln!(documents, "- addresses: ['fd00:10:244:{count:x}::{i:x}']")?;
        }
    }
    Ok(documents)
}

fn tools_in(mode: &str) -> Result<()> {
    let Net { client, node } = Net::new()?;
    let _pass = pass(&client, "eth0")?;
    let folder = scratch()?;
    fs::write(folder.path().join("services.yaml"), manifests()?)?;
    let peak = Peak::on_eth0(&node, &folder, mode, &[])?;

    let web = BTreeSet::from(["fd00:10:244:2::1", "fd00:10:244:2::2"]);
    for (tool, options) in [
        (
            "dig",
            &[
                "",
                "+cookie",
                "+nocookie",
                "+nsid",
                "+dnssec",
                "+cdflag",
                "+bufsize=512",
                "+noedns",
            ][..],
        ),
        (
            "kdig",
            &[
                "",
                "+cookie=0123456789abcdef",
                "+nsid",
                "+dnssec",
                "+cdflag",
                "+bufsize=512",
                "+noedns",
            ][..],
        ),
    ] {
        for server in Net::SERVERS {
            for option in options {
                for name in ["web.shop.svc.cluster.local", "wEb.ShOp.sVc.ClUsTeR.lOcAl"] {
                    let before = peak.status()?.counted();
                    let options: Vec<_> = [*option].into_iter().filter(|o| !o.is_empty()).collect();
                    let printed = run(
                        &client,
                        tool,
                        server,
                        &[&options[..], &[name, "AAAA"]].concat(),
                    )?;
                    let what = format!("{mode} {tool} {server} {option} {name}: {printed:?}");
                    assert!(printed.status("NOERROR"), "{what}");
                    assert!(
                        printed.flag("aa") && printed.flag("rd") && !printed.flag("ra"),
                        "{what}"
                    );
                    assert_eq!(printed.flag("cd"), *option == "+cdflag", "{what}");
                    assert_eq!(printed.addresses(), web, "{what}");
                    // kdig folds names before it asks.
                    let kept = tool == "kdig" || printed.whole.contains(name);
                    assert!(kept, "the case was not kept: {what}");
                    let counted = peak.status()?.counted() - before;
                    assert_eq!((counted.kernel, counted.fallback), (1, 0), "{what}");
                }
            }

            let before = peak.status()?.counted();
            let printed = run(
                &client,
                tool,
                server,
                &["+tcp", "web.shop.svc.cluster.local", "AAAA"],
            )?;
            assert_eq!(printed.addresses(), web, "{printed:?}");
            let printed = run(
                &client,
                tool,
                server,
                &["+tcp", "no.shop.svc.cluster.local", "AAAA"],
            )?;
            assert!(
                printed.status("NXDOMAIN") && printed.flag("aa"),
                "{printed:?}"
            );
            let counted = peak.status()?.counted() - before;
            assert_eq!(
                (counted.kernel, counted.fallback),
                (0, 2),
                "{mode} {tool} {server} TCP"
            );

            let printed = run(
                &client,
                tool,
                server,
                &["no.shop.svc.cluster.local", "AAAA"],
            )?;
            assert!(
                printed.status("NXDOMAIN") && printed.whole.contains("SOA"),
                "{printed:?}"
            );
            let printed = run(&client, tool, server, &["web.shop.svc.cluster.local", "A"])?;
            assert!(
                printed.status("NOERROR") && printed.whole.contains("SOA"),
                "{printed:?}"
            );

            // Too large for UDP: truncated there, and whole over TCP, to which both tools turn by themselves.
            let printed = run(
                &client,
                tool,
                server,
                &["+ignore", "large.shop.svc.cluster.local", "AAAA"],
            )?;
            assert!(
                printed.flag("tc") && printed.status("NOERROR"),
                "{printed:?}"
            );
            let before = peak.status()?.fallback.tcp;
            let output = client.run(|| {
                Command::new(tool)
                    .args([
                        &format!("@{server}"),
                        "large.shop.svc.cluster.local",
                        "AAAA",
                    ])
                    .output()
            })?;
            let printed = Printed {
                whole: String::from_utf8(output.stdout)?,
            };
            assert_eq!(printed.addresses().len(), LARGE, "{mode} {tool} {server}");
            assert_eq!(peak.status()?.fallback.tcp, before + 1);
        }
    }
    Ok(())
}

#[test]
fn tools_are_answered_in_native_mode() -> Result<()> {
    tools_in("native")
}

#[test]
fn tools_are_answered_in_generic_mode() -> Result<()> {
    tools_in("generic")
}
