// Keeps the files of this page, so that it works without a network after the first visit.
// `PAGE` stands above, written with the page: { version, files }. Another version is another set of files, all of them.

const NAME = `onnxcam page ${self.registration.scope} `;
const INDEX = new URL("index.html", self.registration.scope).href;
const FILES = PAGE.files.map((file) => new URL(file, self.registration.scope).href);

self.addEventListener("install", (event) => {
  // past the browser's own cache, which may hold files of another version
  const requests = FILES.map((url) => new Request(url, { cache: "reload" }));
  event.waitUntil(caches.open(NAME + PAGE.version).then((cache) => cache.addAll(requests)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith(NAME) && name !== NAME + PAGE.version) await caches.delete(name);
    }
    await self.clients.claim();
  })());
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  url.search = url.hash = "";
  const file = url.href === self.registration.scope ? INDEX : url.href;
  if (event.request.method !== "GET" || !FILES.includes(file)) return;
  event.respondWith(answer(file));
});

async function answer(file) {
  const cache = await caches.open(NAME + PAGE.version);
  const response = (await cache.match(file)) ?? (await fetch(file));
  // threads need a page that is isolated from others, and many hosts of static files cannot send these headers
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
