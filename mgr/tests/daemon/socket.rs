//! Tests of the control socket: no client can harm another.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use migration_proto::frame::{self, FRAME_BYTES_MAX};
use migration_proto::manager::{FailureKind, Request, Response};
use migration_proto::{Hello, Protocols, Welcome};

use crate::world::World;

/// Sends these bytes after the greeting; returns the answer of shuntd, which must then close the
/// connection.
fn answer_to(world: &World, bytes: &[u8]) -> Response {
    let mut stream = world.connect();
    stream.write_all(bytes).unwrap();
    let response = frame::read(&mut stream).unwrap();
    assert_eq!(
        stream.read(&mut [0]).unwrap(),
        0,
        "the connection is closed"
    );
    response
}

#[test]
fn a_malformed_message_is_answered_and_ends_the_connection() {
    let world = World::new();
    let mut unknown_field = frame::encode(&Request::Status { session: None }).unwrap();
    let text = br#"{"request":"status","session":null,"more":1}"#;
    unknown_field.truncate(4);
    unknown_field[..4].copy_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
    unknown_field.extend(text);
    let too_large = u32::try_from(FRAME_BYTES_MAX + 1).unwrap().to_le_bytes();
    for bytes in [
        b"\x05\0\0\0hello".as_slice(),
        &unknown_field,
        &too_large,
        b"\0\0\0\0",
    ] {
        match answer_to(&world, bytes) {
            Response::Failed(failure) => assert_eq!(failure.kind, FailureKind::Refused),
            other => panic!("{other:?}"),
        }
    }
    world.records(&Request::Status { session: None });
}

#[test]
fn a_client_of_another_protocol_is_told_so() {
    let world = World::new();
    let mut stream = UnixStream::connect(world.config.control_socket()).unwrap();
    let protocols = Protocols {
        oldest: 98,
        newest: 99,
    };
    frame::write(&mut stream, &Hello { protocols }).unwrap();
    let welcome: Welcome = frame::read(&mut stream).unwrap();
    assert!(matches!(welcome, Welcome::WrongProtocol { .. }));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn clients_that_say_nothing_or_half_a_message_hold_up_nobody() {
    let world = World::new();
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = world.connect();
        stream.write_all(b"\x05\0").unwrap();
        silent.push(stream);
        silent.push(UnixStream::connect(world.config.control_socket()).unwrap());
    }
    world.records(&Request::Status { session: None });
}

#[test]
fn connections_beyond_the_limit_take_the_place_of_those_that_are_silent() {
    let world = World::new();
    let status = Request::Status { session: None };
    let mut idle: Vec<UnixStream> = (0..20).map(|_| world.connect()).collect();
    let mut silent = Vec::new();
    for number in 0..200 {
        silent.push(UnixStream::connect(world.config.control_socket()).unwrap());
        if number % 20 == 0 {
            world.records(&status);
        }
    }
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "it made room");
    // Clients that have sent nothing do not displace those that have greeted.
    for stream in &mut idle {
        frame::write(stream, &status).unwrap();
        frame::read::<Response>(stream).unwrap();
    }
    let _more: Vec<UnixStream> = (0..64).map(|_| world.connect()).collect();
    assert_eq!(idle[0].read(&mut [0]).unwrap(), 0, "it made room");
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let world = World::new();
    let mode = std::fs::metadata(world.config.control_socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn several_requests_travel_on_one_connection() {
    let world = World::new();
    let mut stream = world.connect();
    for _ in 0..3 {
        frame::write(&mut stream, &Request::Status { session: None }).unwrap();
        assert!(matches!(
            frame::read(&mut stream).unwrap(),
            Response::Records { .. }
        ));
    }
}
