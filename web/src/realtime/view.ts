/**
 * A table of any length that stays smooth: only the rows in sight are in the document. Cells that change flash.
 *
 * Keys: arrows move between cells, Page Up and Page Down by a screen, Home and End to the first and the last row,
 * Enter opens the row. What is marked is marked by its key, so that it stays the same row when others come above it;
 * so does what is in sight once the reader has scrolled.
 */

import { type Json, sameJson } from "./json";
import type { Row } from "./store";

export interface ViewRow {
  /** The values of the primary key, as JSON. */
  readonly key: string;
  readonly row: Row;
}

export interface ViewOptions {
  readonly columns: readonly string[];
  /** For screen readers. */
  readonly label: string;
  /** CSS px; the stylesheet's height of a row. */
  readonly rowHeight?: number;
  /** Whether a row gets the class "marked". */
  readonly isMarked?: (key: string) => boolean;
  /** Enter, or a double click, on a row. */
  readonly onOpen?: (row: ViewRow) => void;
}

/** Rows above and below what is in sight, so that scrolling does not outrun the drawing. */
const MARGIN = 8;
const FLASH_MS = 1400;
const LONGEST_TEXT = 200;

interface Drawn {
  readonly element: HTMLElement;
  readonly cells: readonly HTMLElement[];
  row: Row;
}

let views = 0;

export class TableView {
  readonly element: HTMLElement;
  readonly #options: ViewOptions;
  readonly #rowHeight: number;
  readonly #id: string;
  readonly #head: HTMLElement;
  readonly #body: HTMLElement;
  readonly #drawn = new Map<string, Drawn>();
  readonly #window: Window;
  readonly #resized: ResizeObserver | null;
  #rows: readonly ViewRow[] = [];
  #indexes: Map<string, number> | null = null;
  /** The keys when it was drawn last; null while there were no rows. */
  #before: ReadonlyMap<string, number> | null = null;
  #active: { key: string; column: number } | null = null;
  #frame: number | null = null;
  /** The first row in sight and how much of it is above the edge, when the reader has scrolled. */
  #anchor: { key: string; offset: number } | null = null;

  constructor(parent: HTMLElement, options: ViewOptions) {
    const page = parent.ownerDocument;
    this.#window = page.defaultView ?? window;
    this.#options = options;
    this.#rowHeight = options.rowHeight ?? 34;
    views += 1;
    this.#id = `table-${views}`;

    this.element = page.createElement("div");
    this.element.className = "table";
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "grid");
    this.element.setAttribute("aria-readonly", "true");
    this.element.setAttribute("aria-label", options.label);
    this.element.setAttribute("aria-colcount", String(options.columns.length));
    this.element.dataset["testid"] = "table";
    this.element.style.setProperty("--columns", String(options.columns.length));

    this.#head = this.#part("table-head");
    const header = this.#part("table-row", "row");
    header.setAttribute("aria-rowindex", "1");
    for (const [index, column] of options.columns.entries()) {
      const cell = this.#part("table-cell", "columnheader");
      cell.setAttribute("aria-colindex", String(index + 1));
      cell.textContent = column;
      cell.title = column;
      header.append(cell);
    }
    this.#head.append(header);
    this.#body = this.#part("table-body");
    this.element.append(this.#head, this.#body);
    parent.append(this.element);

    this.element.addEventListener("scroll", () => this.#scrolled());
    this.element.addEventListener("keydown", (event) => this.#pressed(event));
    this.#body.addEventListener("click", (event) => this.#clicked(event));
    this.#body.addEventListener("dblclick", () => this.#open());
    const Observer = page.defaultView?.ResizeObserver;
    this.#resized = Observer ? new Observer(() => this.#schedule()) : null;
    this.#resized?.observe(this.element);
    this.#draw();
  }

  /** The row that is marked by keyboard or click. */
  get active(): ViewRow | undefined {
    const index = this.#activeIndex();
    return index === null ? undefined : this.#rows[index];
  }

  /** Shows these rows, in this order, with the next frame: many changes cost one drawing. */
  update(rows: readonly ViewRow[]): void {
    this.#rows = rows;
    this.#indexes = null;
    this.#schedule();
  }

  destroy(): void {
    if (this.#frame !== null) this.#window.cancelAnimationFrame(this.#frame);
    this.#resized?.disconnect();
    this.element.remove();
  }

  #part(className: string, role = "rowgroup"): HTMLElement {
    const part = this.element.ownerDocument.createElement("div");
    part.className = className;
    part.setAttribute("role", role);
    return part;
  }

  #schedule(): void {
    this.#frame ??= this.#window.requestAnimationFrame(() => {
      this.#frame = null;
      this.#draw();
    });
  }

  #draw(): void {
    const height = this.#rowHeight;
    this.element.setAttribute("aria-rowcount", String(this.#rows.length + 1));
    this.#body.style.height = `${this.#rows.length * height}px`;
    this.#keepInSight();

    const inSight = Math.max(1, Math.ceil((this.element.clientHeight - this.#head.offsetHeight) / height));
    const top = Math.floor(this.element.scrollTop / height);
    const first = Math.max(0, top - MARGIN);
    const last = Math.min(this.#rows.length, top + inSight + MARGIN);

    const gone = new Set(this.#drawn.keys());
    for (let index = first; index < last; index += 1) {
      const row = this.#rows[index];
      if (!row) continue;
      gone.delete(row.key);
      this.#place(row, index);
    }
    for (const key of gone) {
      this.#drawn.get(key)?.element.remove();
      this.#drawn.delete(key);
    }
    this.#mark();
    this.#before = this.#rows.length > 0 ? this.#positions() : null;
  }

  #place(viewRow: ViewRow, index: number): void {
    const known = this.#drawn.get(viewRow.key);
    const drawn = known ?? this.#make(viewRow);
    drawn.element.setAttribute("aria-rowindex", String(index + 2));
    drawn.element.classList.toggle("odd", index % 2 === 1);
    drawn.element.classList.toggle("marked", this.#options.isMarked?.(viewRow.key) ?? false);
    drawn.element.style.transform = `translateY(${index * this.#rowHeight}px)`;
    if (!known || drawn.row === viewRow.row) return;
    for (const [position, column] of this.#options.columns.entries()) {
      const cell = drawn.cells[position];
      if (!cell || sameJson(drawn.row[column], viewRow.row[column])) continue;
      write(cell, viewRow.row[column]);
      this.#flash(cell);
    }
    drawn.row = viewRow.row;
  }

  #make(viewRow: ViewRow): Drawn {
    const element = this.#part("table-row", "row");
    element.dataset["key"] = viewRow.key;
    const cells = this.#options.columns.map((column, index) => {
      const cell = this.#part("table-cell", "gridcell");
      cell.setAttribute("aria-colindex", String(index + 1));
      write(cell, viewRow.row[column]);
      return cell;
    });
    element.append(...cells);
    this.#body.append(element);
    const drawn = { element, cells, row: viewRow.row };
    this.#drawn.set(viewRow.key, drawn);
    // It has just come to the table, and not merely into sight.
    if (this.#before && !this.#before.has(viewRow.key)) this.#flash(element);
    return drawn;
  }

  #flash(element: HTMLElement): void {
    element.classList.remove("flash");
    // Reading the size makes the browser take note of the removal, without which the animation would not start anew.
    void element.offsetWidth;
    element.classList.add("flash");
    this.#window.setTimeout(() => element.classList.remove("flash"), FLASH_MS);
  }

  // What is in sight, and what is marked

  #positions(): ReadonlyMap<string, number> {
    this.#indexes ??= new Map(this.#rows.map((row, index) => [row.key, index]));
    return this.#indexes;
  }

  #index(key: string): number | null {
    return this.#positions().get(key) ?? null;
  }

  #scrolled(): void {
    const { scrollTop } = this.element;
    const first = this.#rows[Math.floor(scrollTop / this.#rowHeight)];
    // At the top one wants to see what comes.
    this.#anchor = scrollTop > 0 && first ? { key: first.key, offset: scrollTop % this.#rowHeight } : null;
    this.#schedule();
  }

  #keepInSight(): void {
    if (this.#anchor === null) return;
    const index = this.#index(this.#anchor.key);
    if (index === null) {
      this.#anchor = null;
      return;
    }
    const wanted = index * this.#rowHeight + this.#anchor.offset;
    if (Math.abs(wanted - this.element.scrollTop) >= 1) this.element.scrollTop = wanted;
  }

  #activeIndex(): number | null {
    return this.#active && this.#index(this.#active.key);
  }

  #mark(): void {
    this.#body.querySelector(".active-row")?.classList.remove("active-row");
    const cell = this.#body.querySelector(".active");
    cell?.classList.remove("active");
    cell?.removeAttribute("id");
    this.element.removeAttribute("aria-activedescendant");
    const drawn = this.#active && this.#drawn.get(this.#active.key);
    const active = drawn?.cells[this.#active?.column ?? 0];
    if (!drawn || !active) return;
    drawn.element.classList.add("active-row");
    active.classList.add("active");
    active.id = `${this.#id}-active`;
    this.element.setAttribute("aria-activedescendant", active.id);
  }

  #activate(index: number, column: number): void {
    const row = this.#rows[Math.max(0, Math.min(this.#rows.length - 1, index))];
    if (!row) return;
    const columns = this.#options.columns.length;
    this.#active = { key: row.key, column: Math.max(0, Math.min(columns - 1, column)) };
    this.#scrollTo(this.#index(row.key) ?? 0);
    this.#draw();
    this.#drawn.get(row.key)?.cells[this.#active.column]?.scrollIntoView?.({ block: "nearest", inline: "nearest" });
  }

  #scrollTo(index: number): void {
    const height = this.#rowHeight;
    const visible = this.element.clientHeight - this.#head.offsetHeight;
    const top = index * height;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top + height > this.element.scrollTop + visible) this.element.scrollTop = top + height - visible;
    this.#scrolled();
  }

  #pressed(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") {
      this.#open();
      return;
    }
    const at = this.#activeIndex();
    const [row, column] = [at ?? 0, this.#active?.column ?? 0];
    const screen = Math.max(1, Math.floor((this.element.clientHeight - this.#head.offsetHeight) / this.#rowHeight) - 1);
    const targets: Record<string, readonly [number, number]> = {
      ArrowDown: [at === null ? 0 : row + 1, column],
      ArrowUp: [row - 1, column],
      ArrowRight: [row, at === null ? column : column + 1],
      ArrowLeft: [row, column - 1],
      PageDown: [row + screen, column],
      PageUp: [row - screen, column],
      Home: [0, column],
      End: [this.#rows.length - 1, column],
    };
    const target = targets[event.key];
    if (!target) return;
    event.preventDefault();
    this.#activate(target[0], target[1]);
  }

  #clicked(event: Event): void {
    if (!(event.target instanceof Element)) return;
    const row = event.target.closest<HTMLElement>("[role=row]");
    const index = this.#index(row?.dataset["key"] ?? "");
    if (index === null) return;
    const cell = event.target.closest("[role=gridcell]");
    this.#activate(index, Number(cell?.getAttribute("aria-colindex") ?? 1) - 1);
  }

  #open(): void {
    const { active } = this;
    if (active) this.#options.onOpen?.(active);
  }
}

function write(cell: HTMLElement, value: Json | undefined): void {
  const text = shown(value);
  cell.textContent = text.length > LONGEST_TEXT ? `${text.slice(0, LONGEST_TEXT)}…` : text;
  cell.classList.toggle("nothing", value === null || value === undefined);
  cell.classList.toggle("number", typeof value === "number");
}

/** A value as text; a column that did not come at all is not the same as null. */
export function shown(value: Json | undefined): string {
  if (value === undefined) return "—";
  return typeof value === "string" ? value : JSON.stringify(value);
}
