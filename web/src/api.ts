/** The console's server: its answers, typed, and its streams of events. */

import { type Json, parseJson } from "./realtime/json";
import type { Row } from "./realtime/store";

export interface Column {
  readonly name: string;
  readonly type: string;
}

export interface DeclaredTable {
  readonly schema: string;
  readonly name: string;
  readonly read: readonly string[];
  readonly write: readonly string[];
  readonly events: readonly string[];
  readonly primary_key: readonly string[];
  readonly columns: readonly Column[];
  /** Why the console can do nothing with it. */
  readonly unusable: string | null;
}

export interface Stack {
  readonly stack: string;
  readonly url: string;
  readonly tenant: string;
  readonly anon_key: string;
  readonly anon_key_expires: string;
  readonly roles: readonly string[];
  readonly tables: readonly DeclaredTable[];
}

export interface Page {
  readonly rows: readonly Row[];
  readonly as_of: string;
  readonly next: string | null;
  readonly total: number | null;
}

export interface Flow {
  readonly flowing: boolean;
  readonly reason: string | null;
  readonly generation: string;
}

export type Hop = "table" | "publication" | "slot" | "realtime" | "gateway";
export type FindingStatus = "ok" | "warning" | "failed" | "not reached" | "skipped";

export interface Finding {
  readonly check: string;
  readonly title: string;
  readonly hop: Hop;
  readonly status: FindingStatus;
  readonly seen: string;
  readonly likely: string | null;
  readonly cure: string | null;
  readonly page: string | null;
}

export interface Done {
  readonly root: string | null;
  readonly exit_status: number;
  readonly seconds: number;
}

export interface ServerEvent {
  readonly name: string;
  readonly data: Json;
}

/** An answer that is not what was asked for. `cure` says what to do, where the server knows. */
export class ApiError extends Error {
  readonly status: number;
  readonly cure: string | null;

  constructor(status: number, message: string, cure: string | null = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.cure = cure;
  }
}

export function nameOf(table: Pick<DeclaredTable, "schema" | "name">): string {
  return `${table.schema}.${table.name}`;
}

export async function readStack(): Promise<Stack> {
  return (await request("api/stack")) as unknown as Stack;
}

export async function readToken(role: string): Promise<string> {
  const answer = (await request(`api/token?${new URLSearchParams({ role })}`)) as { readonly token: string };
  return answer.token;
}

export async function readRows(
  table: string,
  role: string,
  after: string | null,
  limit: number,
  signal: AbortSignal,
): Promise<Page> {
  const query = new URLSearchParams({ table, role, limit: String(limit) });
  if (after !== null) query.set("after", after);
  return (await request(`api/rows?${query}`, { signal })) as unknown as Page;
}

export interface TestRow {
  readonly row: Row | null;
  readonly key: Row | null;
}

export async function insertRow(table: string, role: string): Promise<TestRow> {
  return (await write("POST", { table, role })) as unknown as TestRow;
}

export async function changeRow(table: string, role: string, key: Row): Promise<void> {
  await write("PATCH", { table, role, key });
}

export async function deleteRow(table: string, role: string, key: Row): Promise<void> {
  await write("DELETE", { table, role, key });
}

/** The server's events of an address, until it ends the stream. Throws when the connection breaks. */
export async function* events(path: string, signal: AbortSignal): AsyncGenerator<ServerEvent> {
  const response = await answered(path, { headers: { Accept: "text/event-stream" }, signal });
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) return;
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const event = parseEvent(block);
      if (event) yield event;
    }
  }
}

/** One event of a text/event-stream; null for a comment, which only keeps the connection alive. */
export function parseEvent(block: string): ServerEvent | null {
  let name = "message";
  const data: string[] = [];
  for (const line of block.split("\n")) {
    const [field = "", value = ""] = /^([^:]*): ?(.*)$/.exec(line)?.slice(1) ?? [];
    if (field === "event") name = value;
    if (field === "data") data.push(value);
  }
  return data.length === 0 ? null : { name, data: parseJson(data.join("\n")) };
}

async function write(method: string, body: Record<string, Json>): Promise<Json> {
  return request("api/rows", {
    method,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

async function request(path: string, init: RequestInit = {}): Promise<Json> {
  return parseJson(await (await answered(path, init)).text());
}

async function answered(path: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...init });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError(0, "the console does not answer", "is `make console` still running?");
  }
  if (response.ok) return response;
  const text = await response.text();
  let answer: { readonly error?: string; readonly cure?: string | null } = {};
  try {
    answer = JSON.parse(text) as typeof answer;
  } catch {
    // The refusal of a missing cookie is one line of text.
  }
  throw new ApiError(
    response.status,
    answer.error ?? (text.trim() || `status ${response.status}`),
    answer.cure ?? null,
  );
}
