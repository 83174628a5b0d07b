// The wire format of protobuf, as far as an ONNX file needs it read and changed: nothing is decoded that is not asked for.
// https://protobuf.dev/programming-guides/encoding/

const VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5;
const LONGEST = 10; // bytes of a varint

/** The file is not what it should be; the message is a sentence for people. */
export class FileError extends Error {
  constructor(message) {
    super(message);
    this.name = "FileError";
  }
}

const damaged = (what) => new FileError(`This is not a whole ONNX file (${what}); copy or export it again.`);

/** The number at `at` and the place after it. Beyond 2^53 it is rounded, which no length in a file can be. */
function varint(bytes, at, stop) {
  let value = 0;
  for (let place = 0; place < LONGEST; place++) {
    if (at + place >= stop) throw damaged("it ends within a number");
    const byte = bytes[at + place];
    value += (byte & 127) * 2 ** (7 * place);
    if (byte < 128) return [value, at + place + 1];
  }
  throw damaged("a number has more than 10 bytes");
}

/**
 * Yield the fields of a message that lies in [start, stop) of `bytes`.
 * Each has `number`, `begin` (of its tag), `from` and `to` (of what it contains) and, if it is a number, `value`.
 */
export function* fields(bytes, start = 0, stop = bytes.length) {
  let at = start;
  while (at < stop) {
    const begin = at;
    let tag, from, value;
    [tag, at] = varint(bytes, at, stop);
    const number = Math.floor(tag / 8), kind = tag % 8;
    if (number < 1 || number > 0x1fffffff) throw damaged("a field has an impossible number");
    from = at;
    if (kind === VARINT) [value, at] = varint(bytes, at, stop);
    else if (kind === FIXED64) at += 8;
    else if (kind === FIXED32) at += 4;
    else if (kind === BYTES) {
      let length;
      [length, from] = varint(bytes, at, stop);
      at = from + length;
    } else throw damaged("a field has an unknown type");
    if (at > stop) throw damaged("a field is longer than what it is part of");
    yield { number, begin, from, to: at, value, bytes: kind === BYTES };
  }
}

/** A number as a varint. */
export function encoded(value) {
  const bytes = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Uint8Array.from([...bytes, value]);
}

/** The head of a field that contains `length` bytes: its tag and that length. */
export function head(number, length) {
  return joined([encoded(number * 8 + BYTES), encoded(length)]);
}

/** Pieces one after the other. */
export function joined(pieces) {
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}
