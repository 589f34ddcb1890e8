//! What sites do with each other all day: clone a repository, copy a tree of
//! small files, dump a database and restore it.

use std::process::Command;
use std::time::Instant;

use crate::lab::{need, Lab, Routers};
use crate::ssh::{listening, Sshd};

const PATH: &str = "rate='100Mbit/s'\nrtt='200ms'\nqueue='1BDP'\nloss=0.01";

#[test]
fn git_clones_over_ssh() {
    need!("git", "ssh", "sshd", "ssh-keygen", "ss");
    let lab = Lab::up(Routers::Mef, PATH);
    let sshd = Sshd::start(&lab);
    let dir = lab.folder.path().display();
    // 200 commits, each with a file that does not compress: about 4 MB.
    lab.sh_ok(
        "b1",
        "git init -q -b main origin && cd origin && git config user.name a && git config user.email a@example.org &&
         for i in $(seq 200); do head -c 20000 /dev/urandom > file$i && git add file$i && git commit -q -m \"file $i\"; done",
    );
    let began = Instant::now();
    lab.sh_ok(
        "a1",
        &format!(
            "GIT_SSH_COMMAND='{}' git clone -q ssh://root@$B1{dir}/origin copy",
            sshd.ssh
        ),
    );
    println!("cloned in {:.2} s", began.elapsed().as_secs_f64());
    lab.sh_ok(
        "a1",
        "test $(git -C copy rev-parse HEAD) = $(git -C origin rev-parse HEAD) && git -C copy fsck --strict --no-progress",
    );
    // And back: a commit of the copy is pushed.
    lab.sh_ok(
        "a1",
        &format!(
            "cd copy && git checkout -q -b new && echo changed > file1 &&
             git -c user.name=b -c user.email=b@example.org commit -qam changed &&
             GIT_SSH_COMMAND='{}' git push -q origin new &&
             test $(git rev-parse HEAD) = $(git -C ../origin rev-parse new)",
            sshd.ssh
        ),
    );
}

#[test]
fn rsync_copies_ten_thousand_small_files() {
    need!("rsync", "ssh", "sshd", "ssh-keygen", "ss");
    let lab = Lab::up(Routers::Mef, PATH);
    let sshd = Sshd::start(&lab);
    let tree = lab.folder.path().join("tree");
    for folder in 0..100 {
        let folder_path = tree.join(format!("{folder}"));
        std::fs::create_dir_all(&folder_path).unwrap();
        for file in 0..100 {
            let content = format!("{folder}.{file} ").repeat(1 + file * 3);
            std::fs::write(folder_path.join(format!("{file}")), content).unwrap();
        }
    }
    let dir = lab.folder.path().display();
    let began = Instant::now();
    lab.sh_ok(
        "a1",
        &format!(
            "rsync -a --timeout=30 -e '{}' tree/ root@$B1:{dir}/copy/",
            sshd.ssh
        ),
    );
    println!("10,000 files in {:.2} s", began.elapsed().as_secs_f64());
    lab.sh_ok("a1", "diff -r tree copy");
}

/// Where Debian keeps PostgreSQL's own programs, which are not in PATH.
fn postgres_programs() -> Option<String> {
    let out = Command::new("sh")
        .args(["-c", "ls -d /usr/lib/postgresql/*/bin | tail -n 1"])
        .output()
        .unwrap();
    let dir = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    (!dir.is_empty()).then_some(dir)
}

#[test]
fn postgresql_is_dumped_and_restored() {
    need!("psql", "pg_dump", "setpriv", "ss");
    let Some(bin) = postgres_programs() else {
        eprintln!("skipped: the server of PostgreSQL is missing");
        return;
    };
    let lab = Lab::up(Routers::Mef, PATH);
    // The server refuses to run as root.
    let user = "setpriv --reuid=postgres --regid=postgres --clear-groups";
    let dir = lab.folder.path().display();
    lab.sh_ok(
        "b1",
        &format!(
            "chmod 755 . && mkdir db && chown postgres db && cd db &&
             {user} {bin}/initdb -A trust -U postgres --no-sync data >/dev/null &&
             echo 'host all all 10.0.0.0/8 trust' >> data/pg_hba.conf"
        ),
    );
    let server = format!(
        "cd {dir}/db && exec {user} {bin}/postgres -D data -h 0.0.0.0 -p 5432 -k {dir}/db -F"
    );
    let _server = lab.background("b1", "sh", &["-c", &server]);
    listening(&lab, "b1", 5432);
    let psql = "psql -q -v ON_ERROR_STOP=1 -U postgres -h $B1";
    // Made at the server's own side: the table comes from nowhere else.
    lab.sh_ok(
        "b1",
        &format!(
            "{psql} -c \"create database one\" -c \"create database two\" &&
             {psql} -d one -c \"create table t (id int primary key, a text, b bytea)\" \
             -c \"insert into t select i, md5(i::text), decode(repeat(md5((i*7)::text), 3), 'hex') from generate_series(1, 50000) i\" \
             -c \"create index on t (a)\""
        ),
    );
    let began = Instant::now();
    lab.sh_ok("a1", "pg_dump -U postgres -h $B1 one > dump");
    let dumped = began.elapsed();
    lab.sh_ok("a1", &format!("{psql} -d two -f dump > /dev/null"));
    println!(
        "dumped in {:.2} s, restored in {:.2} s",
        dumped.as_secs_f64(),
        (began.elapsed() - dumped).as_secs_f64()
    );
    let sum = "select count(*) || ' ' || md5(string_agg(md5(t::text), '' order by id)) from t";
    let [one, two] =
        ["one", "two"].map(|d| lab.sh_ok("a1", &format!("{psql} -d {d} -Atc \"{sum}\"")));
    assert!(one.starts_with("50000 "), "{one}");
    assert_eq!(one, two);
}
