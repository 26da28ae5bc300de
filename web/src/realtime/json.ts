/**
 * JSON as Postgres and Realtime write it, without losing digits.
 *
 * A bigint is a number in their JSON, and JSON.parse rounds what is beyond 2^53: two rows with neighbouring keys would
 * become one. Such integers become strings of their digits here; all else is as JSON.parse has it.
 */

export type Json = null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json };

/** A string, which is passed over whole, or a number. */
const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const LONG = /\d{16}/;
const INTEGER = /^-?\d+$/;

export function parseJson(text: string): Json {
  // Nearly every text is without a long run of digits, and is parsed at the parser's own speed.
  return JSON.parse(LONG.test(text) ? text.replace(TOKEN, quoteUnsafe) : text) as Json;
}

function quoteUnsafe(token: string): string {
  return INTEGER.test(token) && !Number.isSafeInteger(Number(token)) ? `"${token}"` : token;
}

/** Whether two values are the same JSON. The order of an object's members does not count. */
export function sameJson(one: Json | undefined, other: Json | undefined): boolean {
  if (one === other) return true;
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return false;
  if (Array.isArray(one) !== Array.isArray(other)) return false;
  const names = Object.keys(one);
  if (names.length !== Object.keys(other).length) return false;
  const [left, right] = [one as Record<string, Json>, other as Record<string, Json>];
  return names.every((name) => name in right && sameJson(left[name], right[name]));
}
