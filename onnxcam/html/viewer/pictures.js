// Pictures: files from drops, pastes and the file chooser, decoded by the browser.

const MODEL = /\.onnx$/i;

// Files of a drop or a paste, and a sentence where there are none.
export function filesOf(transfer) {
  const items = [...(transfer?.items ?? [])];
  const folders = items.some((item) => item.kind === "file" && item.webkitGetAsEntry?.()?.isDirectory);
  const files = [...(transfer?.files ?? [])].filter((file) => file.size || file.type || MODEL.test(file.name));
  if (files.length && !folders) return { files };
  if (folders) return { files: [], problem: "That is a folder: open it and drop the pictures in it." };
  if (items.some((item) => item.type === "text/uri-list" || item.type === "text/html")) {
    return { files: [], problem: "That is a link, and nothing is fetched from elsewhere: save the picture and drop the file." };
  }
  return { files: [], problem: "There is no picture in it." };
}

export const isModel = (file) => MODEL.test(file.name ?? "");

// An ImageBitmap turned as EXIF says, null where the browser cannot read it.
export async function decode(blob) {
  try {
    return await createImageBitmap(blob);
  } catch {
    return null;
  }
}

const canvasOf = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

// Draw a picture on white, as onnxcam reads transparent ones.
function draw(canvas, bitmap) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return context;
}

// RGBA of a picture at a size.
export const pixelsOf = (bitmap, width, height) => draw(canvasOf(width, height), bitmap).getImageData(0, 0, width, height).data;

export function thumbnail(bitmap) {
  const scale = Math.min(176 / bitmap.width, 132 / bitmap.height, 1);
  const canvas = canvasOf(Math.max(Math.round(bitmap.width * scale), 1), Math.max(Math.round(bitmap.height * scale), 1));
  draw(canvas, bitmap);
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}
