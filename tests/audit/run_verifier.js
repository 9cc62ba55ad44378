"use strict";
/* Reads a file of cases, each {lines, key, witnessed, without}, and writes what the browser's verifier says of each. */
const [verifier, cases] = process.argv.slice(2);
const { verify } = require(verifier);
(async () => {
  const said = [];
  for (const { lines, key, witnessed, without } of JSON.parse(require("fs").readFileSync(cases, "utf8"))) {
    const { subtle } = crypto;
    if (without) {
      const importKey = async () => { throw new DOMException("it is not known here", "NotSupportedError"); };
      Object.defineProperty(crypto, "subtle", { value: { ...subtle, importKey, digest: subtle.digest.bind(subtle) }, configurable: true });
    }
    const report = await verify(lines, { key, witnessed });
    if (without) Object.defineProperty(crypto, "subtle", { value: subtle, configurable: true });
    const counts = Object.fromEntries([...report.counts].map(([name, count]) => [name, Number(count)]));
    said.push({ ...report, counts, unknown: [...report.unknown] });
  }
  process.stdout.write(JSON.stringify(said));
})();
