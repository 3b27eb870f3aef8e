// The package msgpack5rpc, which decodes with msgpack5.
const { createHash } = require("node:crypto");
const net = require("node:net");
const Session = require("msgpack5rpc");

const READ_MAX = 8 << 20;
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

async function main() {
  const socket = net.createConnection(process.env.VUSERD_SOCKET);
  const session = new Session();
  session.attach(socket, socket);
  const call = (method, ...params) =>
    new Promise((done, failed) =>
      session.request(method, params, (error, result) => (error ? failed(error) : done(result))),
    );
  const info = await call("api_info");
  const page = await call("readdir", "files", "/", { attrs: true, split_times: true });
  const image = page.entries.find((entry) => entry.name === "Image");
  const content = [];
  for (let at = 0; at < image.size; at += READ_MAX) {
    content.push(await call("read", "files", "/Image", at, READ_MAX));
  }
  const places = Array.from({ length: 300 }, (_, place) => place * 16);
  const parts = await Promise.all(places.map((at) => call("read", "files", "/Image", at, 16)));
  const code = await call("stat", "files", "/missing").catch((error) => error.code);
  console.log(
    JSON.stringify({
      level: info.api_level,
      names: page.entries.map((entry) => entry.name),
      sha256: sha256(Buffer.concat(content)),
      mtime: [image.mtime, image.mtime_nsec],
      in_flight: sha256(Buffer.concat(parts)),
      code,
    }),
  );
  socket.end();
}

main();
