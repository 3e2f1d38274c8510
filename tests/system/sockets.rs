//! Tests of clients that are silent, slow, half-closed or many: they cost little memory, and hold
//! up nobody.

use std::{io::Write, net::Shutdown, os::unix::net::UnixStream, path::Path};

use tests::{
    host::Host,
    lun,
    steady::{SPAN, Steady},
    wait_until,
};

const HELLO: &[u8] = b"\x0e\0\0\0{\"protocol\":1}";

/// The resident memory of a process, in KiB.
fn resident_kib(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Connects a client that sends these bytes; the server may have closed the connection already.
fn client(socket: &Path, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    let _ = stream.write_all(bytes);
    stream
}

#[test]
fn thousands_of_clients_that_mean_no_good_cost_little_and_hold_up_nobody() {
    const CLIENTS: usize = 1200;
    const GROWTH_KIB_MAX: u64 = 48 << 10;
    let host = Host::new();
    host.ok(&["attach", "db", &lun::disk(0)]);
    let load = Steady::start(&Host::device("db"), SPAN);
    load.go_on();
    let pids = [
        host.shuntd_pid(),
        u64::from(host.connect("db").status().pid),
    ];
    let mut begun = HELLO.to_vec();
    // The largest message that is allowed, announced and never sent.
    begun.extend((1_u32 << 20).to_le_bytes());
    for (socket, pid) in [host.socket(), host.volume_socket("db")].iter().zip(pids) {
        let before = resident_kib(pid);
        let mut kept = Vec::new();
        for number in 0..CLIENTS {
            let bytes: &[u8] = match number % 4 {
                0 => b"",
                1 => &HELLO[..7],
                2 => HELLO,
                _ => &begun,
            };
            let stream = client(socket, bytes);
            if number % 8 < 4 {
                let _ = stream.shutdown(Shutdown::Write);
            }
            kept.push(stream);
            if kept.len() > 500 {
                kept.clear();
            }
            if number % 400 == 0 {
                assert_eq!(host.shunt(&["list"]).code, 0, "shuntd serves nobody");
                let _ = host.connect("db").status();
            }
        }
        let writes = host.connect("db").status().counters.writes;
        // Slow clients send one byte at a time while the load continues.
        let mut slow: Vec<UnixStream> = (0..64).map(|_| client(socket, HELLO)).collect();
        for byte in [0x20, 0, 0, 0, b'{'] {
            for stream in &mut slow {
                let _ = stream.write_all(&[byte]);
            }
            // shuntd's own connection may have lost its place for a moment.
            wait_until("the volume answers", || {
                host.volume("db")["state"] == "attached"
            });
        }
        load.go_on();
        assert!(host.connect("db").status().counters.writes > writes);
        let after = resident_kib(pid);
        println!("{}: {before} KiB, then {after} KiB", socket.display());
        assert!(
            after < before + GROWTH_KIB_MAX,
            "{}: {before} KiB, then {after} KiB",
            socket.display()
        );
    }
    load.finish();
    host.ok(&["detach", "db"]);
}
