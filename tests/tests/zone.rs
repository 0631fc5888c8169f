//! A zone written by hand, with the answers that it must give: what kernel and fallback say is compared with that, and
//! with one another.

use std::fs;

use anyhow::Result;
use peak_tests::{Net, Peak, Wanted, check, pass};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/zone");

#[test]
fn kernel_and_fallback_answer_as_is_written() -> Result<()> {
    let Net { client, node } = Net::new()?;
    let _pass = pass(&client, "eth0")?;
    let peak = Peak::on_eth0(
        &node,
        FOLDER,
        "auto",
        &[
            "--listen",
            "[fd00:10:1::1]:53",
            "--listen",
            "10.1.0.1:53",
            "--reverse",
            "10.96.0.0/16",
            "--pods",
            "insecure",
        ],
    )?;
    let table = fs::read_to_string(format!("{FOLDER}/answers.txt"))?;
    let wanted = Wanted::all(&table)?;
    assert!(wanted.len() >= 100, "{} lines", wanted.len());
    // Who answers is counted line by line.
    check(&peak, &client, &wanted.chunks(1).collect::<Vec<_>>())
}
