//! Framing: a 32-bit little-endian length, then that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// The largest frame that is sent or accepted, in bytes without its length field.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// The size of the length field, in bytes.
pub const HEADER_BYTES: usize = 4;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other end closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The length field is larger than [`FRAME_BYTES_MAX`].
    #[error("a message of {0} bytes is larger than the limit of {FRAME_BYTES_MAX}")]
    TooLarge(usize),
    /// The bytes are not a message of this protocol.
    #[error("not a message of this protocol: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Encodes one message as a frame.
///
/// # Errors
/// [`FrameError::TooLarge`] if the message does not fit.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - HEADER_BYTES;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge(length));
    }
    let header = u32::try_from(length).map_err(|_| FrameError::TooLarge(length))?;
    bytes[..HEADER_BYTES].copy_from_slice(&header.to_le_bytes());
    Ok(bytes)
}

/// The length of the body that a header announces.
///
/// # Errors
/// [`FrameError::TooLarge`] if it is above the limit.
pub fn body_length(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(header) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge(length));
    }
    Ok(length)
}

/// Decodes the body of a frame.
///
/// # Errors
/// [`FrameError::Malformed`] if it is not a `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

/// Writes one message to a blocking stream.
///
/// # Errors
/// As [`encode`], and what the stream says.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    Ok(stream.flush()?)
}

/// Reads one message from a blocking stream.
///
/// # Errors
/// [`FrameError::Closed`] at the end of the stream between two frames; otherwise another
/// [`FrameError`].
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match stream.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let length = body_length(header)?;
    // Memory is allocated for the bytes that have come, not for the announced length.
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hello;

    #[test]
    fn a_message_survives_the_wire() {
        let bytes = encode(&Hello::current()).unwrap();
        let back: Hello = read(&mut bytes.as_slice()).unwrap();
        assert_eq!(back, Hello::current());
    }

    #[test]
    fn an_oversized_length_is_refused_before_anything_is_allocated() {
        let bytes = u32::MAX.to_le_bytes();
        let error = read::<Hello>(&mut bytes.as_slice()).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge(_)), "{error}");
    }

    #[test]
    fn a_cut_frame_is_an_error_and_a_clean_end_is_closed() {
        let bytes = encode(&Hello::current()).unwrap();
        let error = read::<Hello>(&mut &bytes[..bytes.len() - 1]).unwrap_err();
        assert!(matches!(error, FrameError::Io(_)), "{error}");
        let error = read::<Hello>(&mut &bytes[..2]).unwrap_err();
        assert!(matches!(error, FrameError::Io(_)), "{error}");
        let error = read::<Hello>(&mut &[][..]).unwrap_err();
        assert!(matches!(error, FrameError::Closed), "{error}");
    }

    #[test]
    fn unknown_fields_of_a_request_are_refused() {
        let text = br#"{"request":"claim","regions_max":1,"more":2}"#;
        let error = decode::<crate::target::Request>(text).unwrap_err();
        assert!(matches!(error, FrameError::Malformed(_)), "{error}");
    }
}
