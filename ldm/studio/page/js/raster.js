// Shapes into masks. A mask is {data: Uint8Array, width, height}, one level a pixel, 0 to 255. All functions are pure
// but for the mask they draw into, and all rectangles are {x0, y0, x1, y1}, the right and lower ends excluded.

/** The rectangle of a shape's extent inside a mask, or null where it lies outside. */
export function clip(mask, x0, y0, x1, y1) {
  const rect = {
    x0: Math.max(0, Math.floor(x0)),
    y0: Math.max(0, Math.floor(y0)),
    x1: Math.min(mask.width, Math.ceil(x1)),
    y1: Math.min(mask.height, Math.ceil(y1)),
  };
  return rect.x0 < rect.x1 && rect.y0 < rect.y1 ? rect : null;
}

/** The smallest rectangle that holds both; either may be null. */
export function union(a, b) {
  if (!a || !b) return a || b;
  return {
    x0: Math.min(a.x0, b.x0),
    y0: Math.min(a.y0, b.y0),
    x1: Math.max(a.x1, b.x1),
    y1: Math.max(a.y1, b.y1),
  };
}

/** Where a dab of a diameter reaches; a dab of one pixel is the pixel it lies in. */
export function dabRect(mask, x, y, diameter) {
  const r = Math.max(diameter / 2, 0.5);
  return clip(mask, x - r, y - r, x + r + 1, y + r + 1);
}

/**
 * A disc with its centre at (x, y): the pixels whose centres lie in it. From the core outwards a soft one falls
 * smoothly to 0; `hardness` is the core's share of the radius, 1 for a hard disc.
 */
export function dab(mask, x, y, diameter, hardness, erase) {
  const { data, width, height } = mask;
  const r = Math.max(diameter / 2, 0.5);
  if (diameter <= 1.5) {
    const px = Math.floor(x), py = Math.floor(y);
    if (px >= 0 && py >= 0 && px < width && py < height) data[py * width + px] = erase ? 0 : 255;
    return;
  }
  const top = Math.max(0, Math.ceil(y - r - 0.5)), bottom = Math.min(height - 1, Math.floor(y + r - 0.5));
  const core = r * hardness, fall = r - core;
  for (let row = top; row <= bottom; row++) {
    const dy = row + 0.5 - y, half = Math.sqrt(Math.max(0, r * r - dy * dy));
    const left = Math.max(0, Math.ceil(x - half - 0.5)), right = Math.min(width - 1, Math.floor(x + half - 0.5));
    if (left > right) continue;
    const start = row * width;
    if (hardness >= 1) {
      data.fill(erase ? 0 : 255, start + left, start + right + 1);
      continue;
    }
    for (let column = left; column <= right; column++) {
      const dx = column + 0.5 - x, d = Math.sqrt(dx * dx + dy * dy);
      const t = d <= core ? 1 : 1 - (d - core) / fall;
      const level = Math.round(255 * t * t * (3 - 2 * t));
      const i = start + column;
      if (erase) data[i] = Math.min(data[i], 255 - level);
      else data[i] = Math.max(data[i], level);
    }
  }
}

/** Dabs from one point to another, each a pair (x, y, diameter), close enough that their border is smooth. */
export function* dabsBetween(from, to) {
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  const spacing = Math.max(0.5, Math.min(from.size, to.size) / 12);
  const count = Math.max(1, Math.ceil(length / spacing));
  for (let i = 1; i <= count; i++) {
    const t = i / count;
    yield { x: from.x + (to.x - from.x) * t, y: from.y + (to.y - from.y) * t, size: from.size + (to.size - from.size) * t };
  }
}

/** A polygon [{x, y}, ...], filled by the even-odd rule: the pixels whose centres lie inside. */
export function polygon(mask, points, level) {
  const rect = clip(mask, ...extent(points));
  if (!rect) return null;
  const crossings = [];
  for (let row = rect.y0; row < rect.y1; row++) {
    const y = row + 0.5;
    crossings.length = 0;
    for (let i = 0, j = points.length - 1; i < points.length; j = i++) {
      const a = points[j], b = points[i];
      if (a.y <= y !== b.y <= y) crossings.push(a.x + ((y - a.y) / (b.y - a.y)) * (b.x - a.x));
    }
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const left = Math.max(0, Math.ceil(crossings[i] - 0.5));
      const right = Math.min(mask.width, Math.ceil(crossings[i + 1] - 0.5));
      if (left < right) mask.data.fill(level, row * mask.width + left, row * mask.width + right);
    }
  }
  return rect;
}

/** [x0, y0, x1, y1] of points. */
export function extent(points) {
  let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
  for (const { x, y } of points) {
    x0 = Math.min(x0, x);
    y0 = Math.min(y0, y);
    x1 = Math.max(x1, x);
    y1 = Math.max(y1, y);
  }
  return [x0, y0, x1, y1];
}

/** Fill a rectangle. */
export function fillRect(mask, rect, level) {
  for (let row = rect.y0; row < rect.y1; row++) {
    mask.data.fill(level, row * mask.width + rect.x0, row * mask.width + rect.x1);
  }
}

/** The smallest rectangle of all that is above 0; null for an empty mask. */
export function bounds(mask) {
  const { data, width, height } = mask;
  let y0 = 0;
  while (y0 < height && isEmpty(data, y0 * width, width)) y0++;
  if (y0 === height) return null;
  let y1 = height;
  while (isEmpty(data, (y1 - 1) * width, width)) y1--;
  let x0 = width, x1 = 0;
  for (let row = y0; row < y1; row++) {
    const start = row * width;
    for (let x = 0; x < x0; x++) if (data[start + x]) x0 = x;
    for (let x = width - 1; x >= x1; x--) if (data[start + x]) x1 = x + 1;
  }
  return { x0, y0, x1, y1 };
}

function isEmpty(data, start, length) {
  for (let i = start, end = start + length; i < end; i++) if (data[i]) return false;
  return true;
}

/** Everything that what is painted encloses becomes painted. Returns the rectangle in which that may have happened. */
export function fillInside(mask) {
  const box = bounds(mask);
  if (!box) return null;
  const width = box.x1 - box.x0, height = box.y1 - box.y0;
  // A border of one pixel around the box, from which all outside is reached.
  const w = width + 2, h = height + 2, outside = new Uint8Array(w * h), stack = [0];
  const open = (x, y) =>
    x < 0 || y < 0 || x >= width || y >= height || mask.data[(y + box.y0) * mask.width + x + box.x0] < 128;
  outside[0] = 1;
  while (stack.length) {
    const i = stack.pop(), y = Math.floor(i / w);
    let left = i, right = i;
    const first = y * w, last = first + w - 1;
    while (left > first && !outside[left - 1] && open(left - 1 - first - 1, y - 1)) outside[--left] = 1;
    while (right < last && !outside[right + 1] && open(right + 1 - first - 1, y - 1)) outside[++right] = 1;
    for (const step of [-w, w]) {
      const ny = y + step / w;
      if (ny < 0 || ny >= h) continue;
      for (let j = left + step, inRun = false; j <= right + step; j++) {
        const free = !outside[j] && open(j - ny * w - 1, ny - 1);
        if (free && !inRun) {
          outside[j] = 1;
          stack.push(j);
        }
        inRun = free;
      }
    }
  }
  for (let y = 0; y < height; y++) {
    const start = (y + box.y0) * mask.width + box.x0;
    for (let x = 0; x < width; x++) if (!outside[(y + 1) * w + x + 1]) mask.data[start + x] = 255;
  }
  return box;
}

/**
 * Grow what is painted by a disc of so many pixels, or shrink it for a negative number. Grey levels grow too: each pixel
 * gets the greatest level in reach. Returns the rectangle that may have changed.
 */
export function grow(mask, pixels) {
  const box = bounds(mask);
  if (!box || !pixels) return null;
  const n = Math.abs(pixels);
  const rect = clip(mask, box.x0 - n, box.y0 - n, box.x1 + n, box.y1 + n);
  const w = rect.x1 - rect.x0, h = rect.y1 - rect.y0, flip = pixels < 0 ? 255 : 0;
  const source = new Uint8Array(w * h);
  for (let y = 0; y < h; y++) {
    const start = (y + rect.y0) * mask.width + rect.x0;
    for (let x = 0; x < w; x++) source[y * w + x] = mask.data[start + x] ^ flip;
  }
  const target = dilate(source, w, h, n);
  for (let y = 0; y < h; y++) {
    const start = (y + rect.y0) * mask.width + rect.x0;
    for (let x = 0; x < w; x++) mask.data[start + x] = target[y * w + x] ^ flip;
  }
  return rect;
}

/** Each run of one level is spread by the rows of a disc; what is nearest to white wins. */
function dilate(source, w, h, n) {
  const target = source.slice(), reach = [];
  for (let dy = -n; dy <= n; dy++) reach.push(Math.floor(Math.sqrt((n + 0.5) * (n + 0.5) - dy * dy)));
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; ) {
      const level = source[y * w + x], begin = x;
      while (x < w && source[y * w + x] === level) x++;
      if (!level) continue;
      for (let dy = -n; dy <= n; dy++) {
        const row = y + dy;
        if (row < 0 || row >= h) continue;
        const half = reach[dy + n];
        const left = row * w + Math.max(0, begin - half), right = row * w + Math.min(w, x + half);
        if (level === 255) target.fill(255, left, right);
        else for (let i = left; i < right; i++) if (target[i] < level) target[i] = level;
      }
    }
  }
  return target;
}
