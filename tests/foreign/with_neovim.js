// Neovim's client for node: its transport, and what it makes of errors.
const { createHash } = require("node:crypto");
const net = require("node:net");
const { BaseApi } = require("neovim/lib/api/Base.js");
const { Transport } = require("neovim/lib/utils/transport.js");

const READ_MAX = 8 << 20;

async function main() {
  const socket = net.createConnection(process.env.VUSERD_SOCKET);
  const transport = new Transport();
  transport.attach(socket, socket, {});
  const logger = { debug() {}, error() {} };
  const vuserd = new BaseApi({ transport, logger });
  const code = await new Promise((told) =>
    transport.request("stat", ["files", "/missing"], (error) => told(error.code)),
  );
  await vuserd.request("errors_as", ["pair"]);
  const shown = await vuserd.request("stat", ["files", "/missing"]).catch((error) => error.message);
  const info = await vuserd.request("api_info");
  const page = await vuserd.request("readdir", ["files", "/"]);
  const stat = await vuserd.request("stat", ["files", "/Image", { split_times: true }]);
  const hash = createHash("sha256");
  for (let at = 0; at < stat.size; at += READ_MAX) {
    hash.update(await vuserd.request("read", ["files", "/Image", at, READ_MAX]));
  }
  const places = Array.from({ length: 300 }, (_, place) => place * 16);
  const reads = places.map((at) => vuserd.request("read", ["files", "/Image", at, 16]));
  const parts = Buffer.concat(await Promise.all(reads));
  console.log(
    JSON.stringify({
      level: info.api_level,
      names: page.entries.map((entry) => entry.name),
      sha256: hash.digest("hex"),
      mtime: [stat.mtime, stat.mtime_nsec],
      in_flight: createHash("sha256").update(parts).digest("hex"),
      code,
      shown,
    }),
  );
  socket.end();
}

main();
