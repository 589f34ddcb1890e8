//! QUIC crosses as datagrams: the router loses nothing of it, and a download is
//! about as fast as on the bare path.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::lab::{need, Lab, Routers, A1, B1};

const PATH: &str = "rate='100Mbit/s'\nrtt='200ms'\nqueue='1BDP'";
const SIZE: usize = 60_000_000;

fn transport() -> Arc<TransportConfig> {
    let mut t = TransportConfig::default();
    // A window that fills the path and does not overflow its queue (each holds 2.5 MB): what is lost
    // then, the router has lost. With larger ones quinn gives up over the gaps of its first overshoot.
    t.stream_receive_window(VarInt::from_u32(4 << 20));
    t.receive_window(VarInt::from_u32(4 << 20));
    t.send_window(16 << 20);
    t.max_idle_timeout(Some(Duration::from_secs(20).try_into().unwrap()));
    Arc::new(t)
}

fn in_runtime<F: std::future::Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// Downloads `SIZE` bytes over QUIC; payload bits a second, and how many packets the sender found lost.
fn download(routers: Routers) -> (f64, u64) {
    let lab = Lab::up(routers, PATH);
    let made = rcgen::generate_simple_self_signed(vec!["b1".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let (ready, listening) = std::sync::mpsc::channel();
    let chain = vec![certificate.clone()];
    let server = lab.thread("b1", move || {
        in_runtime(async move {
            let mut config = ServerConfig::with_single_cert(chain, key).unwrap();
            config.transport_config(transport());
            let endpoint = Endpoint::server(config, SocketAddr::from((B1, 4433))).unwrap();
            ready.send(()).unwrap();
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let mut out = connection.open_uni().await.unwrap();
            out.write_all(&vec![7; SIZE]).await.unwrap();
            out.finish().unwrap();
            connection.closed().await;
            connection.stats().path.lost_packets
        })
    });
    listening.recv().unwrap();
    let client = lab.thread("a1", move || {
        in_runtime(async move {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(certificate).unwrap();
            let mut config = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
            config.transport_config(transport());
            let mut endpoint = Endpoint::client(SocketAddr::from((A1, 0))).unwrap();
            endpoint.set_default_client_config(config);
            let connection = endpoint
                .connect(SocketAddr::from((B1, 4433)), "b1")
                .unwrap()
                .await
                .unwrap();
            let began = Instant::now();
            let mut stream = connection.accept_uni().await.unwrap();
            let (mut got, mut room) = (0, vec![0; 1 << 16]);
            while let Some(n) = stream.read(&mut room).await.unwrap() {
                assert!(room[..n].iter().all(|b| *b == 7));
                got += n;
            }
            assert_eq!(got, SIZE);
            let rate = got as f64 * 8.0 / began.elapsed().as_secs_f64();
            connection.close(VarInt::from_u32(0), b"");
            endpoint.wait_idle().await;
            rate
        })
    });
    let rate = client.join().unwrap();
    let lost = server.join().unwrap();
    if routers == Routers::Mef {
        for side in ['a', 'b'] {
            let status = lab.status(side);
            let mut said = status.counters;
            said.retain(|name, n| name.starts_with("datagram") && *n > 0);
            println!("{side}: drops {:?}, {said:?}", status.drops);
        }
    }
    (rate, lost)
}

#[test]
fn a_quic_download_is_as_fast_as_on_the_bare_path() {
    need!();
    let (bare, bare_lost) = download(Routers::Direct);
    let (rate, lost) = download(Routers::Mef);
    println!(
        "bare {:.1} Mbit/s, {bare_lost} packets lost; through the routers {:.1} Mbit/s, {lost} lost",
        bare / 1e6,
        rate / 1e6
    );
    assert!(rate >= 0.9 * bare, "{rate} of {bare} bit/s");
    assert_eq!(lost, 0, "packets lost on a path without loss");
}
