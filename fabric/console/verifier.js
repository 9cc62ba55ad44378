"use strict";
/*
 * The independent verifier, once more: does an audit export prove what it says? Without dependencies, in any browser of today.
 *
 * A second implementation beside fabric/audit/verify, so that a fault in one is not a fault in both. It reads the lines of an
 * export and reckons again: the seal and the checkpoint, every hash, the sequence, sums and holds, the price of every
 * purchase and every charge from its own counters. Whole numbers are BigInt. Where it does not know what something means, it
 * says that it can't judge, and never that all is well. It sends nothing anywhere and keeps nothing.
 *
 *   const report = await fabricVerifier.verify(lines, {key: "fabric.example+…"})   // lines: anything that can be iterated twice
 *   report.verdict: "verified" | "whole" (no key was given) | "not_verified" | "cannot_judge"
 */
const fabricVerifier = (() => {
  const DAY_US = 86_400_000_000n, HOUR_US = 3_600_000_000n, MINUTE_US = 60_000_000n, PPM = 1_000_000n;
  const INT64_MAX = 2n ** 63n - 1n, INT64_MIN = -(2n ** 63n), UHS_PER_CT = 3_600_000_000n, REMEMBERED = 32_768;

  class Wrong extends Error {
    constructor(why, code = "not_verified") {
      super(why);
      this.code = code;
    }
  }
  class CannotJudge extends Error {}

  const require = (holds, otherwise, code) => {
    if (!holds) throw new Wrong(typeof otherwise === "function" ? otherwise() : otherwise, code);
  };
  const fail = (why, code) => { throw new Wrong(why, code); };

  // -- values: what Python's dictionaries and numbers do, said once ------------------------------------------------------------

  const has = (of, name) => of !== null && typeof of === "object" && name in of;
  const at = (of, name) => (has(of, name) ? of[name] : fail(`the export is malformed: there is no ${name}`));
  const get = (of, name, otherwise = null) => (has(of, name) ? of[name] : otherwise);
  const int = (value, name = "number") =>
    (typeof value === "bigint" ? value : fail(`the export is malformed: a ${name} is no integer`));
  const list = (value) => (Array.isArray(value) ? value : fail("the export is malformed: there is no list"));
  const text = (value) => (typeof value === "string" ? value : fail("the export is malformed: there is no text"));
  const empty = (value) =>
    value === null || value === undefined || value === false || value === 0n || value === "" ||
    (typeof value === "object" && Object.keys(value).length === 0);
  const sum = (numbers) => numbers.reduce((total, each) => total + each, 0n);
  const min = (numbers) => numbers.reduce((least, each) => (each < least ? each : least));
  const max = (numbers) => numbers.reduce((most, each) => (each > most ? each : most));
  const abs = (number) => (number < 0n ? -number : number);
  const gcd = (a, b) => (b ? gcd(b, a % b) : abs(a));
  const floorDiv = (a, b) => (a - (((a % b) + b) % b)) / b;
  const mod = (a, b) => ((a % b) + b) % b;
  const halfEven = (a, b) => {
    const due = floorDiv(a, b), rest = mod(a, b);
    return due + (2n * rest > b || (2n * rest === b && due % 2n !== 0n) ? 1n : 0n);
  };
  const same = (a, b) => {
    if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
    if (Array.isArray(a) !== Array.isArray(b)) return false;
    const names = Object.keys(a);
    return names.length === Object.keys(b).length && names.every((name) => name in b && same(a[name], b[name]));
  };
  const shown = (value) => {
    if (Array.isArray(value)) return `[${value.map(shown).join(", ")}]`;
    return value === null ? "None" : String(value);
  };
  const quoted = (counts) => `{${[...counts].map(([name, count]) => `'${name}': ${count}`).join(", ")}}`;
  const byNumber = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const sorted = (values) => [...new Set(values)].sort(byNumber);
  const add = (counts, name, amount) => counts.set(name, (counts.get(name) ?? 0n) + amount);
  const last = (account) => account.slice(account.lastIndexOf("/") + 1);
  const pair = (...names) => JSON.stringify(names);

  // -- JSON in which every key stands once, and every number is a whole one of 64 bits ------------------------------------------

  const NUMBER = /-?(?:0|[1-9][0-9]*)/y, SPACE = /[ \t\n\r]*/y, PLAIN = /[^"\\\u0000-\u001f]*/y, DEEP = 256;
  const ESCAPES = { '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

  function parse(source) {
    let place = 0;
    const broken = () => { throw new SyntaxError("this is no JSON"); };
    const taken = (pattern) => {
      pattern.lastIndex = place;
      const found = pattern.exec(source)?.[0] ?? "";
      place += found.length;
      return found;
    };
    const string = () => {
      place += 1;
      let found = "";
      for (;;) {
        found += taken(PLAIN);
        const next = source[place];
        if (next === '"') { place += 1; return found; }
        if (next !== "\\") broken();
        const letter = source[place + 1];
        if (letter === "u") {
          const digits = source.slice(place + 2, place + 6);
          if (!/^[0-9a-fA-F]{4}$/.test(digits)) broken();
          found += String.fromCharCode(parseInt(digits, 16));
          place += 6;
        } else {
          found += ESCAPES[letter] ?? broken();
          place += 2;
        }
      }
    };
    const members = (close, member) => {
      place += 1;
      taken(SPACE);
      if (source[place] === close) { place += 1; return; }
      for (;;) {
        member();
        taken(SPACE);
        const next = source[place];
        place += 1;
        if (next === close) return;
        if (next !== ",") broken();
        taken(SPACE);
      }
    };
    const value = (depth) => {
      if (depth > DEEP) broken();
      taken(SPACE);
      const next = source[place];
      if (next === "{") {
        const found = Object.create(null);
        members("}", () => {
          if (source[place] !== '"') broken();
          const name = string();
          taken(SPACE);
          if (source[place] !== ":") broken();
          place += 1;
          const said = value(depth + 1);
          require(!(name in found), `a key stands twice: ${name}`);
          found[name] = said;
        });
        return found;
      }
      if (next === "[") {
        const found = [];
        members("]", () => found.push(value(depth + 1)));
        return found;
      }
      if (next === '"') return string();
      for (const [word, meaning] of [["true", true], ["false", false], ["null", null]]) {
        if (source.startsWith(word, place)) { place += word.length; return meaning; }
      }
      const digits = taken(NUMBER);
      require(!/^[.eEN]|^Infinity/.test(source.slice(place, place + 8)), "a number is no integer");
      if (!digits) broken();
      require(digits.length < 21, `a number is beyond 64 bits: ${digits.slice(0, 30)}`);
      const number = BigInt(digits);
      require(number <= INT64_MAX && number >= INT64_MIN, `a number is beyond 64 bits: ${digits}`);
      return number;
    };
    const found = value(0);
    taken(SPACE);
    if (place !== source.length) broken();
    return found;
  }

  // -- bytes, hashes, signatures -----------------------------------------------------------------------------------------------

  const utf8 = new TextEncoder(), strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const hex = (bytes) => Array.from(bytes, (each) => each.toString(16).padStart(2, "0")).join("");
  const unhex = (digits) => {
    require(/^(?:[0-9a-f]{2})*$/.test(text(digits)), "the export is malformed: a hash is not in hex");
    return Uint8Array.from(digits.match(/../g) ?? [], (each) => parseInt(each, 16));
  };
  const unbase64 = (said) => {
    const good = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(text(said));
    require(good, "the export is malformed: something is not in base64");
    return Uint8Array.from(atob(said), (each) => each.charCodeAt(0));
  };
  const joined = (...parts) => {
    const whole = new Uint8Array(parts.reduce((size, each) => size + each.length, 0));
    parts.reduce((place, each) => (whole.set(each, place), place + each.length), 0);
    return whole;
  };
  const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const leafHash = (leaf) => sha256(joined(new Uint8Array([0]), leaf));
  const nodeHash = (left, right) => sha256(joined(new Uint8Array([1]), left, right));
  const equal = (a, b) => a.length === b.length && a.every((each, place) => each === b[place]);

  async function publicKey(key) {
    const [name, id, ...rest] = text(key).split("+");
    require(rest.length > 0, "the key is malformed: it is not <name>+<id>+<base64>");
    const bytes = unbase64(rest.join("+"));
    const digest = (await sha256(joined(utf8.encode(`${name}\n`), bytes))).slice(0, 4);
    require(hex(digest) === id && bytes[0] === 1 && bytes.length === 33, "the key is malformed: it does not hash to its id");
    try {
      return { name, id: digest, key: await crypto.subtle.importKey("raw", bytes.slice(1), { name: "Ed25519" }, false, ["verify"]) };
    } catch (error) {
      throw new CannotJudge(`signatures by Ed25519 can't be checked here: ${error.name}`);
    }
  }

  /** The text of a note, without its last newline, if the key signed it. */
  async function signed(note, by, what) {
    const cut = text(note).lastIndexOf("\n\n");
    const body = note.slice(0, Math.max(cut, 0)), lines = note.slice(cut + 2).split("\n");
    const mine = lines.slice(0, -1).filter((line) => line.startsWith(`\u2014 ${by.name} `));
    require(mine.length === 1, `the ${what} has no signature by ${by.name}`);
    const signature = unbase64(mine[0].slice(by.name.length + 3));
    require(equal(signature.slice(0, 4), by.id), `the ${what} was signed with another key`);
    const good = await crypto.subtle.verify({ name: "Ed25519" }, by.key, signature.slice(4), utf8.encode(`${body}\n`));
    require(good, `the signature of the ${what} is wrong: it was changed or forged`);
    return body;
  }

  /** Size and root of a checkpoint, if the key signed it for this origin. */
  async function opened(note, by, origin) {
    const [said, size, root] = (await signed(note, by, "checkpoint")).split("\n");
    require(said === origin, `the checkpoint is of another log, ${said}`);
    require(/^(0|[1-9][0-9]{0,15})$/.test(size), "the checkpoint has no size");
    const bytes = unbase64(root);
    require(bytes.length === 32, "the checkpoint has no root");
    return { size: Number(size), root: hex(bytes) };
  }

  // -- the tree of RFC 6962 -----------------------------------------------------------------------------------------------------

  class Tree {
    edge = [];

    async append(node) {
      let height = 0, right = node;
      while (this.edge.length && this.edge.at(-1)[0] === height) {
        right = await nodeHash(this.edge.pop()[1], right);
        height += 1;
      }
      this.edge.push([height, right]);
    }

    async root() {
      const nodes = this.edge.map(([, node]) => node);
      while (nodes.length > 1) {
        const right = nodes.pop();
        nodes.push(await nodeHash(nodes.pop(), right));
      }
      return hex(nodes[0] ?? (await sha256(new Uint8Array())));
    }
  }

  const splitOf = (size) => {
    let split = 1;
    while (split * 2 < size) split *= 2;
    return split;
  };

  async function included(digest, index, size, proof) {
    if (size === 1) {
      require(proof.length === 0, "the proof is too long");
      return digest;
    }
    require(proof.length > 0, "the proof is too short");
    const split = splitOf(size), next = proof.at(-1), rest = proof.slice(0, -1);
    if (index < split) return nodeHash(await included(digest, index, split, rest), next);
    return nodeHash(next, await included(digest, index - split, size - split, rest));
  }

  async function consistent(old, size, proof, known) {
    if (old === size) {
      require(proof.length === (known === null ? 1 : 0), "the consistency proof has the wrong length");
      return known === null ? [proof[0], proof[0]] : [known, known];
    }
    require(proof.length > 0, "the consistency proof is too short");
    const split = splitOf(size), next = proof.at(-1), rest = proof.slice(0, -1);
    if (old <= split) {
      const [before, now] = await consistent(old, split, rest, known);
      return [before, await nodeHash(now, next)];
    }
    const [before, now] = await consistent(old - split, size - split, rest, null);
    return [await nodeHash(next, before), await nodeHash(next, now)];
  }

  // -- what is known. Prices that say more, with something in it, can't be judged; what else says more is noted, and where then
  // something doesn't follow, that may be why -------------------------------------------------------------------------------------

  const words = (said) => new Set(said.trim().split(/\s+/));
  const KNOWN = {
    entry: words("seq at_us event outcome transfers records continues"),
    transfer: words("transfer_id kind account_id ref at_us postings lots linked_to flags number"),
    record: words(`cdr_id account_id job_id lease_id name service accelerator devices started_at_us ended_at_us metered_us busy_us
      estimated_us tariff_version weight_ppm bands charged_uhs refunded_uhs absorbed_uhs ended model key_id rate_version
      rate_uhs_per_mtok prompt_tokens cached_tokens completion_tokens reasoning_tokens fraction spans covered packages spared_uhs tags
      project member`),
    span: words("from_us until_us estimated_us tariff_version weight_ppm bands"),
    tariffs: words("version name notes utc_offset_minutes weights curve rates"),
    weight: words("accelerator ppm service operator tier hours basis"),
    rate: words("model version accelerator input_uhs_per_mtok cached_uhs_per_mtok output_uhs_per_mtok reasoning_uhs_per_mtok"),
    catalogue: words("version plans bundles subscriptions settlement_hours"),
    plan: words(`name title tier_rank price_microcny_per_ct lifetime_days queue dedicated non_preemptible mode credit_limit_uhs
      dunning`),
    bundle: words("name title price_microcny components"),
    component: words("asset amount share_microcny lifetime_days restriction"),
  };
  const RULES = 2n;

  const unknownIn = (what, kind) => Object.keys(what).filter((name) => !KNOWN[kind].has(name) && !empty(what[name]));

  function known(what, kind) {
    for (const name of unknownIn(what, kind)) {
      throw new CannotJudge(`a ${kind} has ${name}, which this verifier does not know: use a newer one, or \`fabric audit verify\``);
    }
    return what;
  }

  function knownPrices(event) {
    const tariffs = known(at(event, "tariffs"), "tariffs"), catalogue = known(at(event, "catalogue"), "catalogue");
    list(at(tariffs, "weights")).forEach((each) => known(each, "weight"));
    list(get(tariffs, "rates", [])).forEach((each) => known(each, "rate"));
    list(get(catalogue, "plans", [])).forEach((each) => known(each, "plan"));
    for (const bundle of list(get(catalogue, "bundles", []))) {
      list(at(known(bundle, "bundle"), "components")).forEach((each) => known(each, "component"));
    }
  }

  // -- assets, kinds and places -------------------------------------------------------------------------------------------------

  const TOKENS = words("available held debt issued redeemed breakage written_off");
  const LLM = /^llm:[A-Za-z0-9][A-Za-z0-9._-]{0,63}@([0-9]{1,7})\/([0-9]{1,7})\/([0-9]{1,7})\/([0-9]{1,7})$/;
  const PLACES = {
    cust: words("available held debt"), op: words("issued redeemed breakage written_off revenue rounding"),
    receivable: new Set([""]), cash: new Set([""]), suspense: new Set([""]),
  };
  const ISSUES = words("top_up bundle subscription grant"), MOVES = words("hold release capture refund expire void");
  const MONEY = words("repay write_off invoice credit_note sale payment pay_out charge_back reinstate suspense");
  const ON_DEBT = words("invoice reinstate"), KINDS = new Set([...ISSUES, ...MOVES, ...MONEY]);
  const BY = {
    "redeemed+": words("capture write_off"), "redeemed-": words("refund"), "breakage+": words("expire"),
    "issued-": new Set([...ISSUES, ...ON_DEBT]),
  };

  function assetOf(transfer) {
    const found = new Set(transfer.postings.filter(([account]) => TOKENS.has(last(account))).map(([, asset]) => asset));
    if (found.size === 0) found.add("CT");
    const [asset] = found;
    const good = found.size === 1 && (asset === "CT" || LLM.test(asset));
    require(good, `transfer ${transfer.transfer_id} moves tokens of ${shown([...found])}`);
    return asset;
  }

  // -- rates and calls of language models -----------------------------------------------------------------------------------------

  const RATE_KINDS = ["input", "cached", "output", "reasoning"].map((kind) => `${kind}_uhs_per_mtok`);

  class Rates {
    tariffs = [];
    versions = new Map();
    newest = new Map();
    parents = new Map();
    following = new Map();
    types = new Map();

    learn(event, outcome) {
      if (event.event === "configure") {
        this.tariffs = get(event.tariffs, "rates", []);
        const names = [...this.following.keys()].sort((a, b) => Number(Boolean(this.parents.get(a))) - Number(Boolean(this.parents.get(b))));
        names.forEach((name) => this.follow(name));
      } else if (event.event === "offer_model") {
        const spec = at(event, "spec"), name = at(spec, "name"), rates = list(at(event, "rates"));
        rates.forEach((each) => known(each, "rate"));
        this.parents.set(name, get(spec, "parent", "") || "");
        this.following.set(name, rates.length === 0);
        this.types.set(name, empty(get(spec, "accelerators")) ? [""] : spec.accelerators);
        const said = numbersOf(rates, null);
        this.price(name, at(at(outcome, "facts"), "rate_version"), said.size ? said : this.inForce(name));
        for (const [adapter, parent] of this.parents) if (parent === name) this.follow(adapter);
      } else if (event.event === "withdraw_model") {
        this.following.delete(at(event, "model"));
      }
    }

    offered(model, version) { return this.versions.get(pair(model, String(version))); }

    follow(name) {
      const rates = this.following.get(name) ? this.inForce(name) : new Map();
      const types = this.types.get(this.parents.get(name) || name) ?? [""];
      const whole = rates.size && types.every((each) => rates.has("") || rates.has(each));
      if (whole && !same([...rates], [...this.versions.get(pair(name, String(this.newest.get(name))))])) {
        this.price(name, this.newest.get(name) + 1n, rates);
      }
    }

    price(name, version, rates) {
      this.newest.set(name, int(version));
      this.versions.set(pair(name, String(version)), rates);
    }

    inForce(name) {
      const parent = this.parents.get(name);
      let found = numbersOf(this.tariffs, name);
      if (!found.size && parent) found = this.versions.get(pair(parent, String(this.newest.get(parent) ?? 0n))) ?? new Map();
      return found.size ? found : numbersOf(this.tariffs, "");
    }
  }

  const numbersOf = (rates, named) => new Map(
    rates.filter((rate) => named === null || at(rate, "model") === named)
      .map((rate) => [at(rate, "accelerator"), RATE_KINDS.map((kind) => int(at(rate, kind)))])
      .sort(([a], [b]) => byNumber(a, b)),
  );

  function paidByPackages(call, counts, name) {
    let paid = [0n, 0n, 0n, 0n];
    for (const use of list(get(call, "packages", []))) {
      const found = LLM.exec(at(use, "asset"));
      require(found, `${name} is paid for with ${use.asset}`);
      const [prompt, cached, completion, reasoning] = at(use, "tokens");
      const mine = [prompt - cached, cached, completion - reasoning, reasoning];
      require(min(mine) >= 0n && mine.some(Boolean), `${name} has a part that can't be: ${shown(use.tokens)}`);
      const takes = sum(mine.map((count, place) => count * BigInt(found[place + 1])));
      const lots = sum(at(use, "lots").map(([, amount]) => (amount > 0n ? amount : INT64_MIN)));
      require(use.units === takes && takes === lots, `${name} takes ${takes} of ${use.asset}, not ${use.units}, of which lots give ${lots}`);
      paid = paid.map((have, place) => have + mine[place]);
    }
    const inOrder = [1, 0, 3, 2].map((kind) => [counts[kind], paid[kind]]);
    const gaps = inOrder.every(([, part], place) => !part || inOrder.slice(0, place).every(([have, before]) => before === have));
    require(gaps && inOrder.every(([have, part]) => part <= have), `packages pay for ${shown(paid)} tokens of ${name}, which has ${shown(counts)}`);
    return paid;
  }

  const TOLD = ["model", "accelerator", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "covered"];
  const costOf = (counts, rates) => halfEven(sum(counts.map((count, place) => count * rates[place])), 1_000_000n);

  class Calls {
    charged = new Set();
    rates = new Rates();
    heard = new Map();
    used = new Map();
    met = new Map();

    constructor(counts) { this.counts = counts; }

    post(seq, event, outcome, entry) {
      const accepted = outcome.outcome === "accepted";
      for (const transfer of entry.transfers) {
        if (["capture", "write_off"].includes(transfer.kind)) {
          const asset = assetOf(transfer);
          add(this.met, asset === "CT" ? transfer.ref : `${transfer.ref} in ${asset}`, transfer.postings.at(-1)[2]);
        }
      }
      const calls = entry.records.filter((record) => get(record, "model"));
      add(this.counts, "calls", BigInt(calls.length));
      add(this.counts, "charging records", BigInt(entry.records.length - calls.length));
      for (const call of calls) {
        this.check(seq, call);
        this.told(seq, call, event);
        add(this.used, at(call, "lease_id"), call.charged_uhs + get(call, "absorbed_uhs", 0n));
        for (const use of get(call, "packages", [])) add(this.used, `${call.lease_id} in ${use.asset}`, use.units);
      }
      this.lots(seq, calls, entry.transfers);
      const said = accepted && ["update_hold", "settle_hold", "release_hold"].includes(event.event);
      const hold = said ? at(event, "hold_id") : "";
      if (said && at(event, "seq") > (this.heard.get(hold) ?? 0n)) {
        this.heard.set(hold, event.seq);
        add(this.used, hold, get(event, "used_uhs", 0n));
      }
      if (said && event.event !== "update_hold" && (this.used.get(hold) ?? 0n) === (this.met.get(hold) ?? 0n)) {
        this.used.delete(hold);
        this.met.delete(hold);
      }
    }

    finish() {
      for (const hold of new Set([...this.used.keys(), ...this.met.keys()])) {
        const used = this.used.get(hold) ?? 0n, met = this.met.get(hold) ?? 0n;
        if (hold.includes("#") && !used) continue;
        require(used === met, `hold ${hold} paid ${met} µHs for a use of ${used}`);
      }
    }

    told(seq, call, event) {
      if (!call.charged_uhs && !("calls" in event)) return;
      const said = list(get(event, "calls", [])).filter((each) => at(each, "call_id") === call.cdr_id);
      const alike = said.some((each) => TOLD.every((name) => toldAs(each, name) === toldAs(call, name)));
      require(alike, `in entry ${seq} call ${call.cdr_id} is not recorded as it was told`);
    }

    lots(seq, calls, transfers) {
      const named = new Map(), taken = new Map();
      for (const use of calls.flatMap((call) => get(call, "packages", []))) {
        for (const [lot, amount] of use.lots) if (amount > 0n) add(named, pair(use.asset, lot), amount);
      }
      for (const transfer of transfers) {
        const asset = transfer.kind === "capture" ? assetOf(transfer) : "CT";
        for (const [lot, amount] of asset !== "CT" ? transfer.lots : []) add(taken, pair(asset, lot), amount);
      }
      const all = new Set([...named.keys(), ...taken.keys()]);
      const alike = [...all].every((lot) => (named.get(lot) ?? 0n) === (taken.get(lot) ?? 0n));
      require(alike, `entry ${seq} takes ${shown([...taken])} of packages, and its records say ${shown([...named])}`);
    }

    check(seq, call) {
      const name = `in entry ${seq} call ${at(call, "cdr_id")}`, numbers = at(call, "rate_uhs_per_mtok");
      const offered = this.rates.offered(at(call, "model"), at(call, "rate_version"));
      const version = `rates of version ${call.rate_version} of ${call.model}`;
      require(offered, `${name} is charged by ${version}, which are not in the export`);
      const rate = offered.get(at(call, "accelerator")) ?? offered.get("");
      require(rate !== undefined && same(rate, numbers), `${name} is charged at ${shown(numbers)}, and ${shown(rate ?? null)} was offered`);
      const cached = get(call, "cached_tokens", 0n), reasoning = get(call, "reasoning_tokens", 0n);
      const counts = [get(call, "prompt_tokens", 0n) - cached, cached, get(call, "completion_tokens", 0n) - reasoning, reasoning];
      require(min(counts) >= 0n, `${name} has counts that can't be`);
      const paid = paidByPackages(call, counts, name);
      const whole = costOf(counts, numbers), rest = costOf(counts.map((n, place) => n - paid[place]), numbers);
      const spared = get(call, "spared_uhs", 0n);
      require(spared === whole - rest, `in entry ${seq} packages spare ${whole - rest} of call ${call.cdr_id}, not ${spared}`);
      const due = get(call, "covered") ? 0n : rest, charged = int(at(call, "charged_uhs"));
      const costs = charged + get(call, "absorbed_uhs", 0n);
      require(costs === due && charged >= 0n && charged <= due, `${name} costs ${due}, not ${costs} µHs`);
      if (charged || !get(call, "absorbed_uhs")) {
        const knownAs = pair(at(call, "account_id"), call.cdr_id);
        require(!this.charged.has(knownAs), `${name} is charged a second time`);
        this.charged.add(knownAs);
      }
    }
  }

  const toldAs = (of, name) => get(of, name) ?? null;

  // -- leases of devices --------------------------------------------------------------------------------------------------------

  class Leases {
    tariffs = new Map();
    fractions = new Map();
    recorded = new Set();

    learn(event) {
      if (event.event === "configure") {
        const version = String(at(event.tariffs, "version"));
        this.tariffs.set(version, [...(this.tariffs.get(version) ?? []), event.tariffs]);
      } else if (event.event === "submit") {
        this.fractions.set(pair(at(event, "account_id"), at(event, "job_id")), get(at(event, "spec"), "fraction"));
      }
    }

    post(seq, entry) {
      for (const record of entry.records.filter((each) => !get(each, "model"))) {
        const name = `in entry ${seq} the record of lease ${at(record, "lease_id")}`;
        const knownAs = pair(at(record, "account_id"), at(record, "cdr_id"));
        require(!this.recorded.has(knownAs), `${name} is a second one`);
        this.recorded.add(knownAs);
        this.check(name, record);
      }
    }

    check(name, record) {
      const spans = spansOf(record), devices = int(at(record, "devices"));
      spans.forEach((span) => possible(name, devices, span));
      const metered = int(at(record, "metered_us")), estimated = int(at(record, "estimated_us"));
      const turns = [int(at(record, "started_at_us")), ...spans.map((span) => int(at(span, "until_us")))];
      const follow = spans.every((span, place) => at(span, "from_us") === turns[place]) && turns.at(-1) - turns[0] === metered;
      require(follow && sum(spans.map((span) => span.estimated_us)) === estimated, `${name} has spans that aren't all of its time, each once`);
      const part = get(record, "fraction");
      require(part === null || (0n < part[0] && part[0] < part[1]), `${name} is of a part of a device that can't be: ${shown(part)}`);
      const of = pair(record.account_id, at(record, "job_id")), asked = this.fractions.has(of) ? this.fractions.get(of) : part;
      require(same(part, asked), () => `${name} is of ${shown(part)} of a device, and its job asked for ${shown(asked)}`);
      const ran = int(at(record, "ended_at_us")) - turns[0];
      require(metered <= ran, `${name} is metered for ${metered} µs and lasted ${ran}`);
      const charged = int(at(record, "charged_uhs"));
      const due = charged + get(record, "refunded_uhs", 0n) + get(record, "absorbed_uhs", 0n);
      require(charged >= 0n && charged <= due, `${name} gives back more than it took`);
      for (const span of spans) {
        const there = this.tariffs.has(String(at(span, "tariff_version")));
        require(there, `${name} is charged by tariffs of version ${span.tariff_version}, which are not in the export`);
      }
      let made = [0n];
      for (const span of spans) made = sorted(this.made(name, record, span).flatMap((uhs) => made.map((soFar) => soFar + uhs)));
      require(made.includes(due), `${name} is charged ${due} µHs, and its counters, rate and curve make ${shown(made)}`);
    }

    made(name, record, span) {
      const inForce = this.tariffs.get(String(span.tariff_version)), kinds = at(record, "accelerator").split("+");
      const weights = inForce.flatMap((tariffs) => at(tariffs, "weights").filter((line) =>
        kinds.includes(at(line, "accelerator")) && holds(get(line, "hours"), get(tariffs, "utc_offset_minutes", 0n), span),
      ).map((line) => int(at(line, "ppm"))));
      const weight = int(at(span, "weight_ppm"));
      const between = kinds.length > 1 && weights.length && min(weights) <= weight && weight <= max(weights);
      require(weights.includes(weight) || between, `${name} has the weight ${weight}, and ${shown(sorted(weights))} were offered`);
      return inForce.map((tariffs) => burned(record, span, at(at(tariffs, "curve"), "points")));
    }
  }

  function spansOf(record) {
    const whole = empty(get(record, "spans"));
    require(whole || empty(get(record, "bands")), `the record of lease ${record.lease_id} has bands beside its spans`);
    if (!whole) return record.spans.map((span) => ({ estimated_us: 0n, bands: [], ...span }));
    const from = int(at(record, "started_at_us")), { estimated_us, tariff_version, weight_ppm } = record;
    return [{ bands: get(record, "bands", []), from_us: from, until_us: from + int(at(record, "metered_us")), estimated_us, tariff_version, weight_ppm }];
  }

  function possible(name, devices, span) {
    const metered = int(at(span, "until_us")) - int(at(span, "from_us")), bands = span.bands;
    const counters = [...bands.flat(), metered, int(at(span, "estimated_us")), devices];
    let good = min(counters) >= 0n && bands.every(([device, busy]) => busy <= device);
    good &&= sum(bands.map(([device]) => device)) === devices * (metered - span.estimated_us);
    require(good, `${name} has counters that can't be: ${shown(counters)}`);
  }

  function holds(hours, offsetMinutes, span) {
    if (hours === null) return true;
    const end = span.until_us - 1n > span.from_us ? span.until_us - 1n : span.from_us;
    const [first, until] = [span.from_us, end].map((each) => floorDiv(each + offsetMinutes * MINUTE_US, HOUR_US)), [start, stop] = hours;
    for (let hour = first; hour <= until && hour <= first + 23n; hour += 1n) {
      const of = mod(hour, 24n);
      if (!(start < stop ? start <= of && of < stop : of >= start || of < stop)) return false;
    }
    return true;
  }

  function burned(record, span, points) {
    const bands = span.bands, part = get(record, "fraction") ?? [1n, 1n];
    require(bands.length < points.length, "a record has more bands than its curve");
    const widths = points.slice(1).map(([right], place) => right - points[place][0]);
    const scale = widths.reduce((so, width) => (so / gcd(so, width)) * width, 1n);
    let total = span.estimated_us * record.devices * PPM * scale;
    bands.forEach(([device, busy], place) => {
      const [left, low] = points[place], [right, high] = points[place + 1];
      total += low * device * scale + (high - low) * (scale / (right - left)) * (busy * PPM - left * device);
    });
    return halfEven(span.weight_ppm * total * part[0], PPM * PPM * scale * part[1]);
  }

  // -- lots, sales, jobs, numbers -----------------------------------------------------------------------------------------------

  class Lots {
    catalogue = Object.create(null);
    plans = new Map();
    left = new Map();
    goodUntil = new Map();
    onCredit = new Set();
    assets = new Map();

    learn(event) {
      if (event.event === "configure") this.catalogue = event.catalogue;
      else if (event.event === "open_account") this.plans.set(at(event, "account_id"), at(event, "plan"));
    }

    post(seq, transfer, event, whole) {
      const { kind, lots: shares, account_id: owner } = transfer, asset = assetOf(transfer);
      const issued = transfer.postings.some(([account, , amount]) => account.endsWith("/issued") && amount < 0n);
      for (const [lot, amount] of shares) {
        const name = `in entry ${seq} lot ${lot} of ${owner}`, lotOf = `${owner}/${lot}`;
        if (!this.assets.has(lotOf)) this.assets.set(lotOf, asset);
        require(this.assets.get(lotOf) === asset, `${name} is of ${this.assets.get(lotOf)}, and ${asset} are taken of it`);
        if (issued && kind !== "invoice") {
          add(this.left, lotOf, amount);
          this.sold(lotOf, transfer, event, asset);
        } else if (["capture", "expire", "repay", "void"].includes(kind)) {
          add(this.left, lotOf, -amount);
          require(!whole || this.left.get(lotOf) >= 0n || lot.startsWith("refund/"), `${name} gives more than it had`);
        } else if (kind === "refund") {
          add(this.left, lotOf, amount);
        }
        if (kind === "expire") {
          const early = (this.goodUntil.get(lotOf) ?? 0n) - transfer.at_us;
          require(early <= 0n, `${name} expired ${early} µs early`);
        }
      }
      const moved = sum(transfer.postings.filter(([, each, amount]) => each === asset && amount > 0n).map(([, , amount]) => amount));
      const lots = sum(shares.map(([, amount]) => (amount >= 0n ? amount : INT64_MAX + 1n)));
      if (transfer.postings.some(([name]) => name.endsWith("/debt"))) this.onCredit.add(owner);
      const exact = issued || (whole && MOVES.has(kind) && !this.onCredit.has(owner));
      require(!exact || ON_DEBT.has(kind) ? lots <= moved : lots === moved, `in entry ${seq} a ${kind} moves ${moved}, and its lots ${lots}`);
      if (["top_up", "grant"].includes(kind) && event.event === kind) {
        const asked = event.account_id === owner && event.amount_uhs === moved;
        require(asked, `entry ${seq} books ${moved}, asked for is ${event.amount_uhs} for ${event.account_id}`);
      }
    }

    sold(lot, transfer, event, asset) {
      let days = null;
      if (event.event === "top_up") {
        const plan = get(this.catalogue, "plans", []).find((each) => each.name === this.plans.get(transfer.account_id));
        days = plan ? at(plan, "lifetime_days") : null;
      } else if (event.event === "buy_bundle") {
        const offers = get(this.catalogue, "bundles", []).filter((each) => each.name === at(event, "bundle"));
        const parts = offers.flatMap((each) => each.components).filter((part) => part.asset === asset);
        days = parts.length ? min(parts.map((part) => part.lifetime_days)) : null;
        const amounts = parts.map((part) => part.amount);
        const offered = asset === "CT" || !amounts.length || transfer.lots.every(([, amount]) => amounts.includes(amount));
        require(offered, `${lot} of ${asset} is of another amount than ${event.bundle} has: ${shown(sorted(amounts))}`);
      } else if (event.event === "grant") {
        this.goodUntil.set(lot, transfer.at_us + (at(event, "lifetime_us") || INT64_MAX + 1n));
      }
      if (days !== null) this.goodUntil.set(lot, transfer.at_us + days * DAY_US);
    }
  }

  const BOUGHT = words("top_up bundle sale");
  const NEVER_ISSUE = words(`tick metered authorize update_hold settle_hold release_hold submit lease_started lease_finished
    lease_removed`);

  class Sales {
    catalogue = Object.create(null);
    plans = new Map();

    learn(seq, event) {
      if (event.event === "configure") {
        this.catalogue = event.catalogue;
      } else if (event.event === "open_account") {
        this.plans.set(at(event, "account_id"), at(event, "plan"));
        const there = empty(this.catalogue) || this.offer("plans", event.plan);
        require(there, `entry ${seq} opens account ${event.account_id} on ${event.plan}, which is no plan`);
      }
    }

    post(seq, event, transfers) {
      for (const { account_id: owner, kind, postings } of transfers) {
        const nobodys = !owner && !postings.some(([account]) => /^(cust|receivable)\//.test(account));
        require(this.plans.has(owner) || nobodys, `in entry ${seq} a ${kind} is of account ${owner}, which was never opened`);
        const asked = !(BOUGHT.has(kind) || kind === "grant") || !NEVER_ISSUE.has(event.event);
        require(asked, `in entry ${seq} a ${event.event} makes a ${kind}, which nobody asked for`);
      }
      if (event.event === "top_up") this.topUp(seq, event, transfers.filter((each) => each.kind === "top_up"));
      else if (event.event === "buy_bundle") this.bundle(seq, event, transfers.filter((each) => BOUGHT.has(each.kind)));
    }

    offer(kind, name) { return get(this.catalogue, kind, []).find((each) => each.name === name); }

    topUp(seq, event, bought) {
      const plan = this.offer("plans", this.plans.get(at(event, "account_id")) ?? "");
      if (!bought.length || !plan) return;
      const rate = int(at(plan, "price_microcny_per_ct")), amount = int(at(event, "amount_uhs"));
      const exact = halfEven(amount * rate, UHS_PER_CT), due = rate && exact < 1n ? 1n : exact;
      paid(`in entry ${seq} ${amount} µHs on plan ${plan.name}`, at(event, "channel") ? due : 0n, bought);
    }

    bundle(seq, event, bought) {
      const offer = this.offer("bundles", at(event, "bundle"));
      if (!bought.length || !offer) return;
      const name = `in entry ${seq} bundle ${event.bundle}`;
      paid(name, at(event, "channel") ? int(at(offer, "price_microcny")) : 0n, bought);
      const legs = bought.flatMap((each) => each.postings);
      for (const asset of new Set(["CT", ...offer.components.map((part) => part.asset)])) {
        const given = sum(legs.filter(([account, what]) => what === asset && account.startsWith("cust/")).map(([, , amount]) => amount));
        const sold = sum(offer.components.filter((part) => part.asset === asset).map((part) => part.amount));
        const counted = asset === "CT" || asset.startsWith("llm:");
        require(given === sold || !counted, `${name} gives ${given} of ${asset}, and ${sold} were offered`);
      }
    }
  }

  function paid(name, due, bought) {
    const legs = bought.flatMap((each) => each.postings).filter(([account]) => /^(cash|receivable)\//.test(account));
    const money = sum(legs.map(([, , amount]) => amount));
    require(money === due, `${name} costs ${due} by the price list, and ${money} (10⁻⁶ CNY) were taken`);
  }

  class Jobs {
    taken = new Map();
    charged = new Map();
    holds = new Map();
    changed = new Set();

    post(event, entry) {
      if (get(entry, "continues") === null) this.look();
      if (event.event === "submit") {
        const job = pair(at(event, "account_id"), at(event, "job_id"));
        if (!this.holds.has(job)) this.holds.set(job, "");
      }
      for (const transfer of entry.transfers) {
        const cut = transfer.ref.lastIndexOf("#"), job = pair(transfer.account_id, transfer.ref.slice(0, Math.max(cut, 0)));
        if (this.holds.has(job) && ["capture", "refund", "hold"].includes(transfer.kind)) {
          this.holds.set(job, transfer.ref);
          add(this.taken, job, sum(transfer.postings.filter(([account]) => account.endsWith("/redeemed")).map(([, , amount]) => amount)));
        }
      }
      for (const record of entry.records.filter((each) => !get(each, "model"))) {
        const job = pair(record.account_id, record.job_id);
        add(this.charged, job, record.charged_uhs);
        this.changed.add(job);
      }
    }

    look() {
      this.changed.forEach((job) => this.alike(job));
      this.changed.clear();
    }

    finish(ended) {
      this.look();
      for (const [job, hold] of this.holds) if (ended.has(hold)) this.alike(job);
    }

    alike(job) {
      const taken = this.taken.get(job) ?? 0n, charged = this.charged.get(job) ?? 0n;
      require(taken === charged, `for job ${JSON.parse(job)[1]} ${taken} µHs were taken, and its records charge ${charged}`);
    }
  }

  class Numbers {
    before = new Map();

    post(seq, transfers) {
      for (const transfer of transfers) {
        const owner = transfer.account_id, number = get(transfer, "number", 0n), before = this.before.get(owner) ?? 0n;
        const leftOut = `transfers ${before + 1n} to ${number - 1n} of ${owner} are left out`;
        const follows = number || before ? number === before + 1n : true;
        require(follows, `entry ${seq} has transfer ${number} of ${owner} after ${before}: ${leftOut}`);
        this.before.set(owner, number);
      }
    }
  }

  // -- what the entries say, added up --------------------------------------------------------------------------------------------

  class Books {
    held = new Map();
    balances = new Map();
    requests = new Map();
    ended = new Set();
    over = new Set();
    ending = null;
    opened = new Set();
    transferId = 0n;
    atUs = 0n;
    rules = 0n;
    prices = null;

    constructor(report) {
      const { counts, account } = report;
      [this.counts, this.account, this.unknown] = [counts, account, report.unknown];
      [this.calls, this.leases, this.lots] = [new Calls(counts), new Leases(), new Lots()];
      [this.jobs, this.sales, this.numbers] = [new Jobs(), new Sales(), new Numbers()];
    }

    post(seq, leaf, whole) {
      let entry;
      try {
        entry = parse(strict.decode(leaf));
      } catch (error) {
        if (error instanceof SyntaxError || error instanceof TypeError) fail(`entry ${seq} is no JSON`);
        throw error;
      }
      require(at(entry, "seq") === BigInt(seq), `entry ${seq} says that it is number ${entry.seq}`);
      require(int(at(entry, "at_us")) >= this.atUs, `in entry ${seq} time runs backwards`);
      this.atUs = entry.at_us;
      add(this.counts, "entries", 1n);
      let event = at(entry, "event") ?? { event: "" };
      const outcome = at(entry, "outcome") ?? { outcome: "" };
      list(at(entry, "transfers")).forEach(wellFormed);
      this.note(entry, "entry");
      entry.transfers.forEach((each) => this.note(each, "transfer"));
      for (const record of list(at(entry, "records"))) {
        this.note(record, "record");
        if (!empty(get(record, "spans"))) list(record.spans).forEach((each) => this.note(each, "span"));
      }
      at(event, "event");
      add(this.counts, "refusals", at(outcome, "outcome") === "refused" ? 1n : 0n);
      this.request(seq, event, outcome, entry.transfers);
      if (this.ending && get(entry, "continues") !== this.ending.seq) {
        this.ended.add(this.ending.hold);
        this.over.add(this.ending.hold);
        this.ending = null;
      }
      const accepted = outcome.outcome === "accepted";
      if (accepted) {
        event = this.hear(event);
        this.leases.learn(event);
        this.lots.learn(event);
        this.sales.learn(seq, event);
        this.calls.rates.learn(event, outcome);
      }
      this.sales.post(seq, event, entry.transfers);
      this.numbers.post(seq, entry.transfers);
      const complete = whole || !this.counts.get("withheld entries");
      for (const transfer of entry.transfers) {
        this.transfer(seq, transfer, whole, complete);
        this.lots.post(seq, transfer, event, complete);
      }
      this.calls.post(seq, event, outcome, entry);
      this.leases.post(seq, entry);
      this.jobs.post(event, entry);
      if (accepted && ["settle_hold", "release_hold"].includes(event.event)) this.ending = { seq: entry.seq, hold: at(event, "hold_id") };
    }

    note(what, kind) { unknownIn(what, kind).forEach((name) => this.unknown.add(`${name} of a ${kind}`)); }

    /** An event, with the prices that are in force in place of those that were only repeated with a policy. */
    hear(event) {
      if (event.event === "adopt_rules") {
        this.rules = int(at(event, "rules"));
        if (this.rules > RULES) throw new CannotJudge(`the log was decided by rules ${this.rules}, and this verifier knows ${RULES}: use a newer one`);
      }
      if (event.event !== "configure") return event;
      knownPrices(event);
      if (get(event, "by_hand") && this.prices && this.rules >= 2n) return { ...event, ...this.prices };
      this.prices = { tariffs: event.tariffs, catalogue: event.catalogue };
      return event;
    }

    finish() {
      if (this.ending) this.ended.add(this.ending.hold);
      this.calls.finish();
      this.jobs.finish(this.ended);
    }

    request(seq, event, outcome, transfers) {
      const name = get(event, "request_id"), owner = get(event, "account_id") ?? "";
      if (!this.requests.has(owner)) this.requests.set(owner, new Map());
      const of = this.requests.get(owner), before = of.get(name);
      if (before && this.atUs - before.atUs < 32n * DAY_US) {
        require(transfers.length === 0, `entry ${seq} books request ${name} a second time`);
        const alike = same(event, before.event) ? same(outcome, before.outcome) : outcome.outcome === "refused";
        require(alike, `entry ${seq} answers request ${name} otherwise than before`);
      } else if (name && outcome.outcome === "accepted") {
        of.delete(name);
        of.set(name, { event, outcome, atUs: this.atUs });
        if (of.size > REMEMBERED) of.delete(of.keys().next().value);
      }
    }

    transfer(seq, transfer, whole, complete) {
      const { transfer_id: number, kind } = transfer, asset = assetOf(transfer);
      const ref = asset === "CT" ? transfer.ref : `${transfer.ref} in ${asset}`;
      require(whole ? number === this.transferId + 1n : number > this.transferId, `in entry ${seq} transfer ${number} follows ${this.transferId}`);
      this.transferId = number;
      add(this.counts, "transfers", 1n);
      const sums = new Map();
      let held = 0n;
      for (const [account, each, amount] of transfer.postings) {
        add(sums, each, amount);
        add(this.balances, pair(account, each), amount);
        if (account.startsWith("cust/") && account.endsWith("/held")) held += amount;
      }
      require([...sums.values()].every((each) => each === 0n), `the postings of transfer ${number} do not sum to zero: ${quoted(sums)}`);
      const over = this.ended.has(ref) || this.over.has(transfer.ref);
      require(!held || !over, `transfer ${number} moves hold ${ref}, which had ended`);
      if (kind === "hold") this.opened.add(ref).add(transfer.ref);
      const there = this.opened.has(ref) || !["capture", "refund"].includes(kind) || !complete;
      require(there, `in entry ${seq} transfer ${number} is a ${kind} without a hold: ${ref}`);
      this.places(transfer);
      add(this.held, ref, held);
      if (complete) this.aboveZero(transfer, ref, whole);
      const goesOn = list(at(transfer, "flags")).some((flag) => flag === "anew" || flag === "carried");
      if (held < 0n && ["release", "expire"].includes(kind) && this.held.get(ref) === 0n && !goesOn) this.ended.add(ref);
      if (!this.held.get(ref)) this.held.delete(ref);
    }

    places({ transfer_id: number, kind, account_id: owner, postings }) {
      for (const [account, , amount] of postings) {
        const [root, middle = "", leaf = ""] = account.split("/");
        let fits = account.split("/").length <= 3 && Boolean(PLACES[root]?.has(leaf));
        fits &&= middle === owner || !["cust", "receivable"].includes(root);
        fits &&= KINDS.has(kind) && (BY[`${leaf}${amount > 0n ? "+" : "-"}`] ?? KINDS).has(kind);
        require(fits, `transfer ${number}, a ${kind} of ${owner}, books on ${account}`);
      }
    }

    aboveZero(transfer, ref, whole) {
      for (const [account, asset] of transfer.postings) {
        const guarded = account.startsWith(whole ? "cust/" : `cust/${this.account}/`) && /\/(available|held)$/.test(account);
        const left = this.balances.get(pair(account, asset));
        require(!guarded || left >= 0n, `transfer ${transfer.transfer_id} takes ${account} below zero`);
      }
      require((this.held.get(ref) ?? 0n) >= 0n, `transfer ${transfer.transfer_id} takes hold ${ref} below zero`);
    }
  }

  function wellFormed(transfer) {
    ["kind", "account_id", "ref"].forEach((name) => text(at(transfer, name) ?? ""));
    ["transfer_id", "at_us"].forEach((name) => int(at(transfer, name)));
    for (const [account, asset, amount, ...more] of list(at(transfer, "postings"))) {
      require(typeof amount === "bigint", `transfer ${transfer.transfer_id} has an amount that is no integer`);
      require(text(account) !== null && text(asset) !== null && more.length === 0, "a posting is malformed");
    }
    for (const [lot, amount, ...more] of list(at(transfer, "lots"))) {
      require(text(lot) !== null && int(amount) !== null && more.length === 0, "a share of a lot is malformed");
    }
  }

  // -- the file ---------------------------------------------------------------------------------------------------------------

  const bare = (line) => (line.endsWith("\n") ? line.slice(0, -1) : line);
  const parsed = (line, why, code) => {
    try {
      return parse(line);
    } catch (error) {
      if (error instanceof SyntaxError || error instanceof RangeError) fail(why, code);
      throw error;
    }
  };

  /** The SHA-256 of all lines but the last. It is made of all at once: what is too long for one text can't be judged here. */
  async function sealed(lines) {
    try {
      return hex(await sha256(utf8.encode(`${lines.slice(0, -1).join("\n")}\n`)));
    } catch (error) {
      if (error instanceof RangeError) throw new CannotJudge("the export is too large for this verifier: use `fabric audit verify`");
      throw error;
    }
  }

  async function check(lines, report, { key, witnessed }) {
    require(lines.length > 1 || lines[0], "it is empty", "no_export");
    const header = parsed(lines[0], "this is no JSON, and no audit export", "no_export");
    const ours = get(header, "format") === "token-fabric-audit" && at(header, "version") === 2n;
    require(ours, "it does not begin as an audit export of version 2 does", "no_export");
    const last = parsed(lines.at(-1), "the export is cut short within its last line", "export_cut_short");
    [report.origin, report.account, report.key] = [at(header, "origin"), at(header, "account"), at(header, "key")];
    require(!/\p{C}|(?! )\p{Z}/u.test(`${report.origin}${report.account}`), "its names have control characters");
    require(!key || report.key === key.trim(), `it names the key ${report.key}, not the trusted one`, "another_key");
    const by = await publicKey(report.key);
    require(has(last, "checkpoint") && has(last, "seal") && Object.keys(last).length === 2, "the export is cut short: the last line is no checkpoint", "export_cut_short");
    const { size, root } = await opened(last.checkpoint, by, report.origin);
    [report.size, report.root] = [size, root];
    const whose = report.account === null ? "everybody" : `account ${report.account}`;
    const seal = ["token-fabric-audit-export", whose, await sealed(lines), ...last.checkpoint.split("\n").slice(0, 3)].join("\n");
    require((await signed(last.seal, by, "seal")) === seal, "the export was changed after it was signed");
    const old = witnessed ? await opened(`${witnessed.replace(/\n+$/, "")}\n`, by, report.origin) : { size: 0, root: "" };
    require(old.size <= size, `the log was cut: ${old.size} entries were witnessed, ${size} are left`);
    const since = lines.at(-2).startsWith('{"consistent_since":') ? parsed(lines.at(-2), "this line is no JSON") : null;
    const body = lines.slice(1, since ? -2 : -1), books = new Books(report);
    await (report.account === null ? full : account)({ report, body, books, size, root, old, since });
    report.line = 0;
  }

  async function full({ report, body, books, size, root, old }) {
    const tree = new Tree();
    for (const [seq, said] of body.entries()) {
      report.line = seq + 2;
      const line = parsed(said, "this line is no JSON");
      const fits = Object.keys(line).length === 2 && has(line, "leaf") && line.seq === BigInt(seq);
      require(fits, `entry ${seq} is missing or out of order`);
      if (seq === old.size && old.size) require((await tree.root()) === old.root, `history was rewritten: another root at size ${old.size}`);
      const leaf = unbase64(line.leaf);
      await tree.append(await leafHash(leaf));
      books.post(seq, leaf, true);
    }
    report.line = 0;
    books.finish();
    require(body.length === size, `${size} entries were signed, ${body.length} are here`);
    require((await tree.root()) === root, "the entries do not hash to the signed root: one was changed");
    require(old.size !== size || !size || old.root === root, `the log was forked at size ${old.size}`);
  }

  async function account({ report, body, books, size, root, old, since }) {
    let before = -1n;
    for (const [place, said] of body.entries()) {
      report.line = place + 2;
      const line = parsed(said, "this line is no JSON"), seq = int(at(line, "seq")), proof = list(at(line, "proof")).map(unhex);
      require(before < seq && seq < BigInt(size), `entry ${seq} is out of order or beyond the signed tree`);
      const withheld = !has(line, "leaf"), leaf = withheld ? null : unbase64(line.leaf);
      const digest = withheld ? unhex(at(line, "leaf_hash")) : await leafHash(leaf);
      require(hex(await included(digest, Number(seq), size, proof)) === root, `the proof of entry ${seq} is wrong`);
      before = seq;
      if (withheld) add(report.counts, "withheld entries", 1n);
      else books.post(Number(seq), leaf, false);
    }
    report.line = 0;
    if (!report.counts.get("withheld entries")) books.finish();
    if (old.size === 0 || old.size === size) {
      require(old.size === 0 || old.root === root, `the log was forked at size ${old.size}`);
      return;
    }
    require(since && since.consistent_since === BigInt(old.size), `ask for an export that is consistent since size ${old.size}`);
    const grown = await consistent(old.size, size, at(since, "proof").map(unhex), unhex(old.root));
    require(hex(grown[0]) === old.root && hex(grown[1]) === root, `history before size ${old.size} was rewritten: the log was forked`);
  }

  /** Check an export: a list of its lines, or its text. `key` is whom you trust, `witnessed` an older checkpoint that you kept. */
  async function verify(given, options = {}) {
    const report = {
      verdict: "", problem: "", code: "", line: 0, origin: "", key: "", account: null, size: 0, root: "", counts: new Map(),
      unknown: new Set(), notes: ["witnesses' cosignatures, statements and receipts are not looked at here: `fabric audit verify` does"],
    };
    try {
      await check((typeof given === "string" ? given.replace(/\n$/, "").split("\n") : [...given]).map(bare), report, options);
      report.verdict = options.key ? "verified" : "whole";
      if (report.unknown.size) report.notes.push(`not looked at, because this verifier is older than they are: ${[...report.unknown].join(", ")}`);
    } catch (error) {
      report.problem = error.message;
      if (error instanceof CannotJudge) {
        [report.verdict, report.code] = ["cannot_judge", "cannot_judge"];
      } else {
        [report.verdict, report.code] = ["not_verified", error instanceof Wrong ? error.code : "not_verified"];
        if (!(error instanceof Wrong)) report.problem = `the export is malformed: ${error.name}: ${error.message}`;
        if (report.unknown.size) {
          [report.verdict, report.code] = ["cannot_judge", "cannot_judge"];
          report.problem += `. This verifier does not know ${[...report.unknown].join(", ")}: use a newer one, or \`fabric audit verify\``;
        }
      }
    }
    return report;
  }

  /** The bytes of a file as text, or a report that it is none. */
  const decoded = (bytes) => strict.decode(bytes);

  return { verify, parse, decoded };
})();

if (typeof module !== "undefined") module.exports = fabricVerifier;
