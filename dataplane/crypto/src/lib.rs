//! What makes a MEF link secret and authentic: node keys, the Noise handshake,
//! the lanes' keys and the replay window. Sans-IO: bytes in, bytes out, `now` an argument.
#![forbid(unsafe_code)]
