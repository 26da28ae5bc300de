/** The picture of a change's path, hop by hop, with what the doctor found at each. */

import type { Finding, Hop } from "./api";
import type { Status } from "./realtime/subscription";

export type HopName = Hop | "browser";
export type HopStatus = "ok" | "warning" | "failed" | "unknown";

const HOPS: ReadonlyArray<readonly [HopName, string]> = [
  ["table", "Table"],
  ["publication", "Publication"],
  ["slot", "Slot"],
  ["realtime", "Realtime"],
  ["gateway", "Kong"],
  ["browser", "Browser"],
];

/** Told apart by shape as well as by colour. */
const SHAPES: Record<HopStatus, string> = {
  ok: "M4 8.5l3 3 5-6.5",
  warning: "M8 3.5v5.5M8 12v.5",
  failed: "M4.5 4.5l7 7M11.5 4.5l-7 7",
  unknown: "M4 8h8",
};

const WORDS: Record<HopStatus, string> = { ok: "OK", warning: "Warning", failed: "Failed", unknown: "Not known" };

/** The worst of a hop's findings; what was skipped or not reached says nothing. */
export function worst(findings: readonly Finding[]): HopStatus {
  for (const status of ["failed", "warning", "ok"] as const) {
    if (findings.some((finding) => finding.status === status)) return status;
  }
  return "unknown";
}

export function ofState(status: Status): HopStatus {
  return ({ live: "ok", connecting: "warning", offline: "failed" } as const)[status.state];
}

/** One line below the hop's name. */
export function summary(findings: readonly Finding[]): string {
  const status = worst(findings);
  const first = findings.find((finding) => finding.status === status);
  if (status === "unknown" || !first) return findings.find((one) => one.seen)?.seen ?? "not looked at yet";
  const count = findings.filter((finding) => finding.status === status).length;
  if (status === "ok") return count === 1 ? "1 check passed" : `${count} checks passed`;
  return first.seen + (count > 1 ? ` (and ${count - 1} more)` : "");
}

interface HopView {
  readonly button: HTMLButtonElement;
  readonly shape: SVGPathElement;
  readonly status: HTMLElement;
  readonly text: HTMLElement;
  findings: Finding[];
}

export class PathView {
  readonly #hops = new Map<HopName, HopView>();
  readonly #dialog: HTMLDialogElement;
  readonly #list: HTMLElement;
  #browser: Status = { state: "connecting", reason: "" };
  /** Of the examination that is running: the former one's findings stand until a hop's first new one comes. */
  #fresh = new Set<Hop>();
  #opened: HopName | null = null;

  constructor(parent: HTMLElement, dialog: HTMLDialogElement) {
    this.#dialog = dialog;
    this.#list = document.createElement("ol");
    this.#list.className = "path";
    this.#list.setAttribute("aria-label", "Path of a change");
    for (const [name, title] of HOPS) this.#list.append(this.#make(name, title));
    parent.append(this.#list);
    dialog.addEventListener("close", () => {
      if (this.#opened !== null) this.#hops.get(this.#opened)?.button.focus();
      this.#opened = null;
    });
    this.setBrowser(this.#browser);
  }

  /** An examination begins. */
  begin(): void {
    this.#fresh = new Set();
    this.#list.setAttribute("aria-busy", "true");
  }

  /** With `broken`, why it came to no end: what the former one found where it did not look is no longer known. */
  end(broken: string | null = null): void {
    this.#list.setAttribute("aria-busy", "false");
    if (broken === null) return;
    for (const [name, hop] of this.#hops) {
      if (name === "browser" || this.#fresh.has(name)) continue;
      hop.findings = [];
      this.#show(name, "unknown", broken);
    }
  }

  add(finding: Finding): void {
    const hop = this.#hops.get(finding.hop);
    if (!hop) return;
    if (!this.#fresh.has(finding.hop)) hop.findings = [];
    this.#fresh.add(finding.hop);
    hop.findings.push(finding);
    this.#show(finding.hop, worst(hop.findings), summary(hop.findings));
  }

  setBrowser(status: Status): void {
    this.#browser = status;
    this.#show("browser", ofState(status), status.reason || "changes arrive");
  }

  #make(name: HopName, title: string): HTMLElement {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "hop";
    button.dataset["testid"] = `hop-${name}`;
    button.setAttribute("aria-haspopup", "dialog");
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 16 16");
    svg.setAttribute("aria-hidden", "true");
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.append(shape);
    const [heading, status, text] = [span("hop-name", title), span("hop-status"), span("hop-text")];
    button.append(svg, heading, status, text);
    button.addEventListener("click", () => this.#open(name, title));
    item.append(button);
    this.#hops.set(name, { button, shape, status, text, findings: [] });
    this.#show(name, "unknown", "not looked at yet");
    return item;
  }

  #show(name: HopName, status: HopStatus, text: string): void {
    const hop = this.#hops.get(name);
    if (!hop) return;
    hop.button.dataset["status"] = status;
    hop.shape.setAttribute("d", SHAPES[status]);
    hop.status.textContent = WORDS[status];
    hop.text.textContent = text;
    hop.text.title = text;
    if (this.#opened === name) this.#fill(name);
  }

  #open(name: HopName, title: string): void {
    this.#opened = name;
    const heading = this.#dialog.querySelector("h2");
    if (heading) heading.textContent = title;
    this.#fill(name);
    this.#dialog.showModal();
  }

  #fill(name: HopName): void {
    const body = this.#dialog.querySelector(".dialog-body");
    const hop = this.#hops.get(name);
    if (!body || !hop) return;
    if (name === "browser") {
      const words = { live: "Live", connecting: "Connecting", offline: "Offline" }[this.#browser.state];
      body.replaceChildren(paragraph("", `${words}. ${this.#browser.reason || "Changes arrive in this page."}`));
      return;
    }
    const order = ["failed", "warning", "ok", "not reached", "skipped"];
    const findings = [...hop.findings].sort((one, other) => order.indexOf(one.status) - order.indexOf(other.status));
    if (findings.length === 0) body.replaceChildren(paragraph("", "Nothing was looked at here yet."));
    else body.replaceChildren(...findings.map(article));
  }
}

function article(finding: Finding): HTMLElement {
  const element = document.createElement("article");
  element.className = "finding";
  element.dataset["status"] = finding.status;
  const heading = document.createElement("h3");
  heading.append(span("finding-status", finding.status), ` ${finding.title}`);
  element.append(heading, paragraph("finding-seen", finding.seen));
  if (finding.likely) element.append(paragraph("", finding.likely, "Cause"));
  if (finding.cure) element.append(paragraph("", finding.cure, "Cure"));
  if (finding.page) element.append(paragraph("finding-page", finding.page, "More"));
  return element;
}

function paragraph(className: string, text: string, label?: string): HTMLElement {
  const element = document.createElement("p");
  element.className = className;
  if (label) element.append(span("label", `${label}: `));
  element.append(text);
  return element;
}

function span(className: string, text = ""): HTMLElement {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  return element;
}
