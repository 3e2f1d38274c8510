//! Tests of refusals: the text names the object, the cause and the next command; nothing changes
//! and no byte is written.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::Command,
};

use migration_proto::target::{Request, Response};
use tests::{
    host::Host,
    lun::{self, LoopDevice, Mapped, Mounted},
    run, sh, wait_until,
};

const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;
const NO_SHUNTD: i32 = 5;

#[test]
fn a_kernel_without_ublk_is_named() {
    sh("modprobe", &["-r", "ublk_drv"]);
    // Otherwise modprobe would load the driver again.
    let configuration = "/etc/modprobe.d/shunt-test.conf";
    std::fs::create_dir_all("/etc/modprobe.d").unwrap();
    std::fs::write(configuration, "install ublk_drv /bin/false\n").unwrap();
    let host = Host::without_driver();
    host.refused(&["attach", "db", &lun::disk(0)], REFUSED, &["ublk_drv"]);
    std::fs::remove_file(configuration).unwrap();
    host.ok(&["attach", "db", &lun::disk(0)]);
    host.ok(&["detach", "db"]);
}

#[test]
fn luns_that_must_not_be_touched_are_refused_as_source_and_as_target() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let refuse = |lun: &str, words: &[&str]| {
        let before = lun::checksum(lun);
        host.refused(&["attach", "other", lun], REFUSED, words);
        host.refused(&["create", "move", &format!("db:{lun}")], REFUSED, words);
        assert_eq!(lun::checksum(lun), before, "{lun} was written");
    };
    sh("mkfs.ext4", &["-q", &target]);
    {
        let mounted = Mounted::read_only(&target);
        refuse(&target, &["mounted", &mounted.path().to_string_lossy()]);
    }
    {
        let _mapped = Mapped::linear("shunt-test-holder", &target);
        refuse(&target, &["shunt-test-holder"]);
    }
    sh("wipefs", &["--all", "--quiet", &target]);
    // The source is taken already, by its own name and by others.
    refuse(&source, &["db"]);
    let alias = tempfile::tempdir_in("/var/tmp").unwrap();
    let link = alias.path().join("link").to_string_lossy().into_owned();
    std::os::unix::fs::symlink(&source, &link).unwrap();
    refuse(&link, &["db"]);
    let node = alias.path().join("node").to_string_lossy().into_owned();
    let numbers = sh("stat", &["--dereference", "--format=%Hr %Lr", &source]);
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    sh("mknod", &[&node, "b", numbers[0], numbers[1]]);
    refuse(&node, &["db"]);
    // A volume cannot be a LUN.
    refuse(&Host::device("db"), &["db"]);
    for (path, word) in [
        ("/var/tmp/missing", "does not exist"),
        ("/etc", "directory"),
        ("/dev/null", "character"),
    ] {
        host.refused(&["attach", "other", path], REFUSED, &[path, word]);
    }
    host.ok(&["detach", "db"]);
}

/// A namespace of the kernel's NVMe target.
struct NvmeExport(std::path::PathBuf);

impl NvmeExport {
    fn new(name: &str, device: &str) -> Self {
        sh("modprobe", &["nvmet"]);
        let root = std::path::Path::new("/sys/kernel/config");
        if !root.join("nvmet").exists() {
            sh("mount", &["-t", "configfs", "none", "/sys/kernel/config"]);
        }
        let subsystem = root.join("nvmet/subsystems").join(name);
        let namespace = subsystem.join("namespaces/1");
        std::fs::create_dir(&subsystem).unwrap();
        std::fs::create_dir(&namespace).unwrap();
        std::fs::write(namespace.join("device_path"), device).unwrap();
        std::fs::write(namespace.join("enable"), "1").unwrap();
        Self(subsystem)
    }
}

impl Drop for NvmeExport {
    fn drop(&mut self) {
        let namespace = self.0.join("namespaces/1");
        let _ = std::fs::write(namespace.join("enable"), "0");
        let _ = std::fs::remove_dir(namespace);
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn luns_that_the_kernel_exports_are_refused_and_an_exported_volume_is_not_detached() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    {
        let _export = NvmeExport::new("shunt-test-lun", &target);
        let words = ["exported by the kernel", "nvmet", "shunt-test-lun"];
        host.refused(&["attach", "other", &target], REFUSED, &words);
        host.refused(
            &["create", "move", &format!("db:{target}")],
            REFUSED,
            &words,
        );
    }
    let export = NvmeExport::new("shunt-test-volume", &Host::device("db"));
    let words = ["open", "nvmet", "shunt-test-volume"];
    host.refused(&["detach", "db"], REFUSED, &words);
    lun::read_megabyte(&Host::device("db"), 0).unwrap();
    drop(export);
    host.ok(&["detach", "db"]);
}

#[test]
fn what_lies_on_a_volume_is_no_leg_and_a_volume_with_the_state_on_it_is_not_started() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.ok(&["attach", "db", &source]);
    let device = Host::device("db");
    sh("mkfs.ext4", &["-q", &device]);
    host.ok(&["create", "move", &format!("db:{target}")]);
    {
        let mounted = Mounted::new(&device);
        let file = mounted.path().join("lun").to_string_lossy().into_owned();
        std::fs::File::create(&file)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        host.refused(
            &["attach", "other", &file],
            REFUSED,
            &["volume", "/dev/ublkb"],
        );
        let state = host.state_dir().to_string_lossy().into_owned();
        sh(
            "mount",
            &["--bind", &mounted.path().to_string_lossy(), &state],
        );
        let refused = host.shunt(&["start", "move"]);
        wait_until("the status says it", || {
            host.pair("move")["problem"]
                .to_string()
                .contains("lies on this volume")
        });
        sh("umount", &[&state]);
        assert_eq!(refused.code, REFUSED, "{refused:?}");
        assert!(refused.error.contains("lies on this volume"), "{refused:?}");
    }
    host.ok(&["start", "move"]);
    host.wait_for("move", "source-selected");
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn targets_that_do_not_fit_are_refused() {
    let host = Host::new();
    let (source, target, small) = (lun::disk(0), lun::disk(1), lun::disk(2));
    host.ok(&["attach", "db", &source]);
    let create = |target: &str| ["create", "move", &format!("db:{target}")].map(str::to_owned);
    let refuse = |target: &str, words: &[&str]| {
        let arguments = create(target);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        host.refused(&arguments, REFUSED, words);
    };
    refuse(
        &small,
        &[
            &lun::size(&small).to_string(),
            &lun::size(&source).to_string(),
        ],
    );
    let sectors = LoopDevice::new(300 << 20, 4096);
    refuse(&sectors.path, &["4096", "512"]);
    for (make, kind) in [("mkfs.ext4 -q", "ext4"), ("mkswap -q", "swap")] {
        sh("bash", &["-c", &format!("{make} {target}")]);
        refuse(&target, &[kind, "--overwrite"]);
        sh("wipefs", &["--all", "--quiet", &target]);
        // The rest of the old contents is still there.
        refuse(&target, &["not recognised", "first MiB", "--overwrite"]);
    }
    sh(
        "bash",
        &["-c", &format!("echo ,, | sfdisk --quiet {target}")],
    );
    refuse(&target, &["partition"]);
    sh("wipefs", &["--all", "--force", "--quiet", &target]);
    sh("blockdev", &["--rereadpt", &target]);
    sh("mkfs.ext4", &["-q", &target]);
    host.ok(&["create", "move", &format!("db:{target}"), "--overwrite"]);
    // A target can be in one migration only.
    host.refused(
        &["create", "second", &format!("db:{target}")],
        REFUSED,
        &["move"],
    );
    host.ok(&["cancel", "move", "--yes"]);
    host.ok(&["detach", "db"]);
}

#[test]
fn verbs_that_the_state_does_not_allow_are_refused() {
    let host = Host::new();
    let (source, target) = (lun::disk(0), lun::disk(1));
    host.refused(&["detach", "db"], NOT_FOUND, &["db"]);
    for verb in ["start", "pause", "resume", "switch", "undo"] {
        host.refused(&[verb, "move"], NOT_FOUND, &["move"]);
    }
    host.ok(&["attach", "db", &source]);
    assert!(
        host.ok(&["attach", "db", &source])
            .error
            .contains("already")
    );
    host.refused(&["attach", "db", &target], REFUSED, &["db"]);
    host.ok(&["create", "move", &format!("db:{target}")]);
    let refuse =
        |arguments: &[&str], state: &str| host.refused(arguments, REFUSED, &["move", state]);
    refuse(&["switch", "move"], "setup");
    refuse(&["undo", "move"], "setup");
    refuse(&["commit", "move", "--yes"], "setup");
    host.ok(&["start", "move"]);
    host.ok(&["start", "move"]);
    host.wait_for("move", "source-selected");
    refuse(&["commit", "move", "--yes"], "source-selected");
    host.refused(&["detach", "db"], REFUSED, &["move"]);
    host.ok(&["switch", "move"]);
    assert!(host.ok(&["switch", "move"]).error.contains("already"));
    refuse(&["cancel", "move", "--yes"], "target-selected");
    // Without a terminal, `commit` needs `--yes`.
    host.refused(&["commit", "move"], REFUSED, &["--yes"]);
    host.ok(&["commit", "move", "--yes"]);
    refuse(&["undo", "move"], "committed");
    {
        let device = Host::device("db");
        let _open = std::fs::File::open(&device).unwrap();
        host.refused(
            &["detach", "db"],
            REFUSED,
            &["db", &std::process::id().to_string()],
        );
    }
    host.ok(&["detach", "db"]);
}

#[test]
fn only_root_is_served_and_only_one_shuntd_runs() {
    let host = Host::new();
    let nobody = |program: &str, arguments: &[&str]| {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", program])
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let socket = host.socket().to_string_lossy().into_owned();
    let (code, said) = nobody("shunt", &["--socket", &socket, "list"]);
    assert!(
        code == Some(NO_SHUNTD) && said.contains("root"),
        "{code:?} {said}"
    );
    let (code, said) = nobody(
        "shuntd",
        &["--state-dir", "/var/tmp/x", "--runtime-dir", "/var/tmp/y"],
    );
    assert!(code == Some(1) && said.contains("root"), "{code:?} {said}");
    let state = host.state_dir().to_string_lossy().into_owned();
    let second = || {
        let elsewhere = ["--state-dir", &state, "--runtime-dir", "/var/tmp/second"];
        let output = run("shuntd", &elsewhere);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains(&format!("pid {}", host.shuntd_pid())),
            "{said}"
        );
    };
    second();
    // A second shuntd does not start either while the first one is frozen. The first one then
    // continues.
    host.signal_shuntd(libc::SIGSTOP);
    second();
    host.signal_shuntd(libc::SIGCONT);
    host.ok(&["list"]);
    let output = run("shunt", &["--socket", "/var/tmp/no-such-socket", "list"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(NO_SHUNTD) && said.contains("next: "),
        "{said}"
    );
}

/// Sends bytes and reads what comes until the other end closes or is silent.
fn send(socket: &std::path::Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(std::time::Duration::from_millis(300)))
        .unwrap();
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn malformed_messages_on_either_socket_harm_nobody() {
    let host = Host::new();
    host.ok(&["attach", "db", &lun::disk(0)]);
    let hello = b"\x0e\0\0\0{\"protocol\":1}";
    let mut garbage_after_hello = hello.to_vec();
    garbage_after_hello.extend(b"\x07\0\0\0garbage");
    for socket in [host.socket(), host.volume_socket("db")] {
        for bytes in [
            &b"\xff\xff\xff\xff"[..],
            b"\0\0\0\0",
            b"GET / HTTP/1.0\r\n\r\n",
            b"\x0e\0\0\0{\"prot",
            &garbage_after_hello,
        ] {
            let answer = send(&socket, bytes);
            assert!(answer.len() < 4096, "{answer:?}");
        }
        // Connections that stay open and silent.
        let idle: Vec<UnixStream> = (0..20)
            .map(|_| UnixStream::connect(&socket).unwrap())
            .collect();
        host.ok(&["list"]);
        assert_eq!(host.volume("db")["state"], "attached");
        drop(idle);
    }
    let mut connection = host.connect("db");
    let epoch = connection.status().epoch;
    for (request, reason) in [
        (Request::Claim { regions_max: 1 }, "not-copier"),
        (Request::Claim { regions_max: 0 }, "malformed"),
        (Request::OpenCopier, "wrong-route"),
        (Request::RetryMirror { epoch: epoch + 1 }, "stale-epoch"),
    ] {
        let Response::Refused { reason: said, .. } = connection.ask(&request) else {
            panic!("{request:?} was not refused");
        };
        assert_eq!(serde_json::to_value(said).unwrap(), reason, "{request:?}");
    }
    host.ok(&["detach", "db"]);
}
