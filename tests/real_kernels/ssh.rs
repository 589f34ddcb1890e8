//! An sshd in a host, for programs that travel over ssh.

use std::time::Duration;

use crate::lab::{wait_for, Background, Lab};

/// Waits until somebody listens on `port` of `host`.
pub fn listening(lab: &Lab, host: &str, port: u16) {
    wait_for("a listener", Duration::from_secs(10), || {
        let out = lab.sh(host, &format!("ss -Hltn 'sport = {port}'"));
        if out.stdout.is_empty() {
            return Err(format!("nobody on port {port} of {host}"));
        }
        Ok(())
    });
}

/// An sshd in `b1` with keys of its own, and the client's command line.
pub struct Sshd {
    _daemon: Background,
    /// `ssh` and its options; `root@$B1` is to follow.
    pub ssh: String,
}

impl Sshd {
    pub fn start(lab: &Lab) -> Self {
        let folder = lab.folder.path();
        let dir = folder.display();
        let _ = std::fs::create_dir_all("/run/sshd");
        lab.sh_ok(
            "b1",
            "ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f user",
        );
        let config = format!(
            "Port 2222\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/user.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
        );
        std::fs::write(folder.join("sshd.conf"), config).unwrap();
        let daemon = lab.background(
            "b1",
            "/usr/sbin/sshd",
            &["-D", "-f", &format!("{dir}/sshd.conf")],
        );
        listening(lab, "b1", 2222);
        let ssh = format!(
            "ssh -p 2222 -i {dir}/user -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -F none"
        );
        Self {
            _daemon: daemon,
            ssh,
        }
    }
}
