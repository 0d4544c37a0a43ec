/** JSON with all its digits: JavaScript would round a number that has more than 15 to 17 of them. */

/** A number that is shown and compared by its digits, and computed with as JavaScript can. */
export class LongNumber {
  constructor(private readonly digits: string) {}

  toString(): string {
    return this.digits;
  }

  toJSON(): string {
    return this.digits;
  }

  valueOf(): number {
    return Number(this.digits);
  }
}

/** Parsing with a function takes several times as long, and few texts need it. */
const MAY_BE_LONG = /\d[\d.]{15}/;

/** Parse JSON. A browser that does not tell the source of a number rounds it. */
export function parseJson(text: string): unknown {
  return JSON.parse(text, MAY_BE_LONG.test(text) ? keepDigits : undefined);
}

/** Parse one row of JSON lines. */
export function parseRow(text: string): Record<string, unknown> {
  return parseJson(text) as Record<string, unknown>;
}

function keepDigits(_: string, value: unknown, context?: { source?: string }): unknown {
  const source = context?.source;
  if (typeof value !== "number" || source === undefined) return value;
  if (/^-?\d+$/.test(source)) return Number.isSafeInteger(value) ? value : new LongNumber(source);
  return digitsOf(source) === digitsOf(String(value)) ? value : new LongNumber(source);
}

/** Return the digits of a number without sign, point, exponent and outer zeros. */
function digitsOf(number: string): string {
  return number.replace(/e.*$/i, "").replace(/[-.]/g, "").replace(/^0+|0+$/g, "");
}

/** Return the elements of a JSON array as JSON lines, each character of a value as it is. An array without its end is thrown. */
export function arrayToLines(text: string): string {
  const lines: string[] = [];
  let [depth, start] = [0, 0];
  for (const { 0: token, index } of text.matchAll(/"[^"\\]*(?:\\.[^"\\]*)*"|[[\]{},]/gs)) {
    const isEnd = depth === 1 && (token === "," || token === "]");
    if (isEnd) lines.push(text.slice(start, index).replace(/[\r\n]+/g, " ").trim());
    if (isEnd || (depth === 0 && token === "[")) start = index + 1;
    if (token === "[" || token === "{") depth += 1;
    if (token === "]" || token === "}") depth -= 1;
  }
  if (depth > 0) throw new Error("the JSON array has no end, so rows may be missing");
  const rest = text.slice(start).trim(); // what follows the array
  return [...lines, rest].filter((line) => line).map((line) => `${line}\n`).join("");
}
