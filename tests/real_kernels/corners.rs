//! Corners of TCP with real Linux sockets at both ends, each with the RFC that speaks of it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::{need, wait_for, Lab, Routers, A1, B1};

const WAN: &str = "rate='50Mbit/s'\nrtt='200ms'\nqueue='1BDP'";
const STALL: Duration = Duration::from_secs(20);

/// Opens from a port to a port of the other host, which does the same at that moment.
fn meet(own: (Ipv4Addr, u16), other: (Ipv4Addr, u16), together: &Barrier) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::from(own))).unwrap();
    together.wait();
    let to = SockAddr::from(SocketAddr::from(other));
    socket.connect_timeout(&to, STALL).unwrap();
    socket.into()
}

/// RFC 9293, section 3.5: two Linux sockets that connect to each other over 200 ms have one connection.
#[test]
fn rfc9293_two_sockets_that_connect_to_each_other_meet() {
    need!();
    let lab = Lab::up(Routers::Mef, WAN);
    for round in 0..3u16 {
        let together = Arc::new(Barrier::new(2));
        let ends = [((A1, 5000 + round), "a1"), ((B1, 6000 + round), "b1")];
        let threads = [0, 1].map(|i| {
            let together = Arc::clone(&together);
            let ((own, host), (other, _)) = (ends[i], ends[1 - i]);
            lab.thread(host, move || {
                let mut stream = meet(own, other, &together);
                stream.set_read_timeout(Some(STALL)).unwrap();
                let mut writer = stream.try_clone().unwrap();
                let bytes = vec![i as u8; 300_000];
                let writes = std::thread::spawn(move || {
                    writer.write_all(&bytes).unwrap();
                    writer.shutdown(std::net::Shutdown::Write).unwrap();
                });
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                writes.join().unwrap();
                assert_eq!(got.len(), 300_000);
                assert!(got.iter().all(|b| usize::from(*b) == 1 - i));
            })
        });
        threads.into_iter().for_each(|t| t.join().unwrap());
    }
    let crossing = ['a', 'b'].map(|side| lab.status(side).counters["flows_crossing"]);
    println!("of 3 connections crossed: {crossing:?}");
    assert_eq!(crossing, [3, 3]);
}

/// Runs the Python program `server` in b1, which says on which port it listens by listening there,
/// then `client` in a1; both have to end well.
fn python(lab: &Lab, server: &str, client: &str) -> String {
    let common = "import socket,os,struct,time,sys\n\
        A,B=os.environ['A1'],os.environ['B1']\n\
        def all(s):\n\
        \x20 b=b''\n\
        \x20 while True:\n\
        \x20  n=s.recv(65536)\n\
        \x20  if not n: return b\n\
        \x20  b+=n\n";
    let file = |name: &str, text: &str| {
        std::fs::write(lab.folder.path().join(name), format!("{common}{text}")).unwrap();
    };
    file("server.py", server);
    file("client.py", client);
    let folder = lab.folder.path().to_owned();
    let mut run = lab.command("b1", "timeout");
    run.args(["60", "python3", "server.py"])
        .current_dir(&folder)
        .env("A1", A1.to_string())
        .env("B1", B1.to_string());
    let mut serving = run.spawn().unwrap();
    wait_for("the server", STALL, || {
        let out = lab.sh("b1", "ss -ltn | grep -q :7000");
        out.status.success().then_some(()).ok_or(String::new())
    });
    let said = lab.sh_ok("a1", "timeout 60 python3 client.py");
    let ended = wait_for("the server's end", STALL, || {
        serving.try_wait().unwrap().ok_or(String::new())
    });
    assert!(ended.success());
    said
}

/// Takes a connection, echoes all that came when it ended.
const ECHO: &str = "\
    l=socket.create_server((B,7000)) if not SETUP else SETUP()\n\
    c,_=l.accept()\n\
    b=all(c)\n\
    c.sendall(b)\n\
    c.close()\n";

fn echo(setup: &str) -> String {
    match setup {
        "" => format!("SETUP=None\n{ECHO}"),
        text => format!("def SETUP():\n{text}\n return l\n{ECHO}"),
    }
}

/// RFC 8684, section 3.7: where the offer of multipath is taken out, both ends fall back to plain TCP.
#[test]
fn rfc8684_multipath_sockets_fall_back_to_one_path() {
    need!("python3", "ss");
    let lab = Lab::up(Routers::Mef, WAN);
    if !std::path::Path::new("/proc/sys/net/mptcp/enabled").exists() {
        eprintln!("skipped: this kernel has no MPTCP");
        return;
    }
    let setup = " l=socket.socket(socket.AF_INET,socket.SOCK_STREAM,262)\n \
        l.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\n l.bind((B,7000))\n l.listen()";
    let client = "\
        c=socket.socket(socket.AF_INET,socket.SOCK_STREAM,262)\n\
        c.connect((B,7000))\n\
        c.sendall(bytes(i%251 for i in range(1000000)))\n\
        c.shutdown(socket.SHUT_WR)\n\
        b=all(c)\n\
        print(len(b), b==bytes(i%251 for i in range(1000000)))\n";
    assert_eq!(python(&lab, &echo(setup), client).trim(), "1000000 True");
    assert_eq!(lab.status('a').counters["flows_opened"], 1);
}

/// RFC 7413: data on a SYN is not acknowledged, so it comes once, behind the handshake.
#[test]
fn rfc7413_fast_open_falls_back_to_a_handshake() {
    need!("python3", "ss");
    let lab = Lab::up(Routers::Mef, WAN);
    for host in ["a1", "b1"] {
        // Cookies are not asked for, so that there is data on the first SYN.
        lab.sh_ok(host, "echo 1543 > /proc/sys/net/ipv4/tcp_fastopen");
    }
    let setup = " l=socket.create_server((B,7000))\n l.setsockopt(socket.IPPROTO_TCP,23,16)";
    let client = "\
        c=socket.socket()\n\
        c.sendto(b'early ',0x20000000,(B,7000))\n\
        c.sendall(b'late')\n\
        c.shutdown(socket.SHUT_WR)\n\
        print(all(c).decode())\n";
    assert_eq!(python(&lab, &echo(setup), client).trim(), "early late");
    assert_eq!(lab.status('a').counters["flows_opened"], 1);
}

/// RFC 6093: urgent data stays in line.
#[test]
fn rfc6093_urgent_data_of_linux_stays_in_line() {
    need!("python3", "ss");
    let lab = Lab::up(Routers::Mef, WAN);
    let client = "\
        c=socket.create_connection((B,7000))\n\
        c.sendall(b'before ')\n\
        c.send(b'!',socket.MSG_OOB)\n\
        c.sendall(b' behind')\n\
        c.shutdown(socket.SHUT_WR)\n\
        print(all(c).decode())\n";
    assert_eq!(python(&lab, &echo(""), client).trim(), "before ! behind");
}

/// RFC 2385: signed segments are the hosts' own; the connection goes as datagrams.
#[test]
fn rfc2385_signed_connections_go_as_datagrams() {
    need!("python3", "ss");
    let lab = Lab::up(Routers::Mef, WAN);
    let sign = |peer: &str| {
        format!(
            "struct.pack('H2s4s120s',socket.AF_INET,b'',socket.inet_aton({peer}),b'')\
             +struct.pack('BBHI80s',0,0,6,0,b'secret')"
        )
    };
    let setup = format!(
        " l=socket.create_server((B,7000))\n l.setsockopt(socket.IPPROTO_TCP,14,{})",
        sign("A")
    );
    let client = format!(
        "c=socket.socket()\n\
        try:\n c.setsockopt(socket.IPPROTO_TCP,14,{})\n\
        except OSError:\n print('none'); c=None\n\
        if c is None: c=socket.create_connection((B,7000))\n\
        else: c.connect((B,7000))\n\
        c.sendall(b'x'*300000)\n\
        c.shutdown(socket.SHUT_WR)\n\
        print(len(all(c)))\n",
        sign("B")
    );
    let lacks = lab.sh(
        "a1",
        "zcat /proc/config.gz 2>/dev/null | grep -q 'TCP_MD5SIG is not set'",
    );
    if lacks.status.success() {
        eprintln!("skipped: this kernel has no TCP-MD5");
        return;
    }
    assert_eq!(python(&lab, &echo(&setup), &client).trim(), "300000");
    assert_eq!(lab.status('a').counters["flows_opened"], 0);
}

/// RFC 9293, section 3.8.4: a connection that is idle but for keep-alives stays, at both ends.
#[test]
fn rfc9293_keep_alives_of_linux_keep_a_connection() {
    need!("python3", "ss");
    let lab = Lab::up(Routers::Mef, WAN);
    let client = "\
        c=socket.create_connection((B,7000))\n\
        for k,v in ((socket.TCP_KEEPIDLE,1),(socket.TCP_KEEPINTVL,1),(socket.TCP_KEEPCNT,3)):\n\
        \x20 c.setsockopt(socket.IPPROTO_TCP,k,v)\n\
        c.setsockopt(socket.SOL_SOCKET,socket.SO_KEEPALIVE,1)\n\
        c.sendall(b'a')\n\
        time.sleep(7)\n\
        c.sendall(b'b')\n\
        c.shutdown(socket.SHUT_WR)\n\
        print(all(c).decode())\n";
    assert_eq!(python(&lab, &echo(""), client).trim(), "ab");
}

/// RFC 791, section 3.2: segments that a host sends in fragments reach the server's stream.
#[test]
fn rfc791_fragmented_segments_reach_the_servers_stream() {
    need!("python3", "ss", "nft");
    let lab = Lab::up(Routers::Mef, WAN);
    // The host's own TCP knows nothing of the connection that the program plays.
    lab.sh_ok(
        "a1",
        "nft 'add table ip t; add chain ip t o { type filter hook output priority 0; }; \
         add rule ip t o ip protocol tcp ip frag-off & 0x1fff == 0 tcp flags & rst == rst drop'",
    );
    let server = "\
        l=socket.create_server((B,7000))\n\
        c,_=l.accept()\n\
        b=b''\n\
        while len(b)<9000: b+=c.recv(65536)\n\
        assert b==bytes(i%251 for i in range(9000))\n\
        c.sendall(b'whole')\n";
    let client = "\
        out=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_RAW)\n\
        back=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_TCP)\n\
        back.settimeout(10)\n\
        def tcp(seq,ack,flags,data=b''):\n\
        \x20 h=struct.pack('!HHIIBBHHH',5555,7000,seq,ack,0x50,flags,60000,0,0)\n\
        \x20 p=socket.inet_aton(A)+socket.inet_aton(B)+struct.pack('!HH',6,len(h+data))+h+data\n\
        \x20 p+=b'\\0'*(len(p)%2)\n\
        \x20 s=sum(struct.unpack('!%dH'%(len(p)//2),p))\n\
        \x20 while s>>16: s=(s&0xffff)+(s>>16)\n\
        \x20 return h[:16]+struct.pack('!H',~s&0xffff)+h[18:]+data\n\
        def send(t,ident,size,order=1):\n\
        \x20 cut=[(i,t[i:i+size]) for i in range(0,len(t),size)][::order]\n\
        \x20 for i,piece in cut:\n\
        \x20  more=0x2000 if i+size<len(t) else 0\n\
        \x20  h=struct.pack('!BBHHHBBH4s4s',0x45,0,0,ident,more|i//8,64,6,0,socket.inet_aton(A),socket.inet_aton(B))\n\
        \x20  out.sendto(h+piece,(B,0))\n\
        def heard():\n\
        \x20 while True:\n\
        \x20  p=back.recv(65536)[20:]\n\
        \x20  if struct.unpack('!HH',p[:4])==(7000,5555): return p\n\
        send(tcp(100,0,2),1,1480)\n\
        p=heard()\n\
        assert p[13]==0x12\n\
        ack=struct.unpack('!I',p[4:8])[0]+1\n\
        data=bytes(i%251 for i in range(9000))\n\
        for i in range(3):\n\
        \x20 send(tcp(101+3000*i,ack,0x10,data[3000*i:3000*i+3000]),10+i,1000,(1,-1)[i%2])\n\
        while True:\n\
        \x20 p=heard()\n\
        \x20 b=p[(p[12]>>4)*4:]\n\
        \x20 if b: print(b.decode()); break\n";
    assert_eq!(python(&lab, server, client).trim(), "whole");
    assert_eq!(lab.status('a').counters["packets_reassembled"], 3);
}
