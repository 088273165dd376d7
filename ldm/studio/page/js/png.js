// Masks as PNG files: grey, one byte a pixel, exactly as painted; and pictures back into masks.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc(parts) {
  let value = 0xffffffff;
  for (const part of parts) for (const byte of part) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function number(value) {
  return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
}

function chunk(name, body) {
  const kind = new TextEncoder().encode(name);
  return [number(body.length), kind, body, number(crc([kind, body]))];
}

/** A PNG of 8-bit grey levels (PNG specification, colour type 0), as a Blob. */
export async function encode({ data, width, height }) {
  const rows = new Uint8Array(height * (width + 1)); // each row begins with its filter, 0: none
  for (let y = 0; y < height; y++) rows.set(data.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  const header = new Uint8Array([...number(width), ...number(height), 8, 0, 0, 0, 0]);
  const parts = [...chunk("IHDR", header), ...chunk("IDAT", packed), ...chunk("IEND", new Uint8Array())];
  return new Blob([Uint8Array.from(SIGNATURE), ...parts], { type: "image/png" });
}

/** The grey levels of a picture file at a size: what is white is painted, what is transparent is not. */
export async function decode(file, width, height) {
  const bitmap = await createImageBitmap(file);
  const levels = new Uint8Array(width * height), strip = Math.max(1, Math.floor(2 ** 22 / width));
  const canvas = new OffscreenCanvas(width, Math.min(strip, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  for (let top = 0; top < height; top += strip) {
    const rows = Math.min(strip, height - top);
    context.clearRect(0, 0, width, rows);
    const scale = bitmap.height / height;
    context.drawImage(bitmap, 0, top * scale, bitmap.width, rows * scale, 0, 0, width, rows);
    const { data } = context.getImageData(0, 0, width, rows);
    for (let i = 0, j = top * width; i < data.length; i += 4, j++) {
      const grey = 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
      levels[j] = Math.round((grey * data[i + 3]) / 255);
    }
  }
  bitmap.close();
  return levels;
}
