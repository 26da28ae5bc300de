// @vitest-environment jsdom

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { TableView, type ViewOptions, type ViewRow } from "../src/realtime/view";

const HEIGHT = 340;
const ROW = 34;

let view: TableView;
let opened: ViewRow[];

function rowsOf(count: number, first = 1): ViewRow[] {
  return Array.from({ length: count }, (_, index) => rowOf(first + index));
}

function rowOf(id: number, name: string | null = `row ${id}`): ViewRow {
  return { key: `[${id}]`, row: { id, name } };
}

function make(options: Partial<ViewOptions> = {}): void {
  view = new TableView(document.body, {
    columns: ["id", "name"],
    label: "Rows",
    onOpen: (row) => opened.push(row),
    ...options,
  });
  // jsdom lays nothing out.
  Object.defineProperty(view.element, "clientHeight", { value: HEIGHT });
}

function show(rows: readonly ViewRow[]): void {
  view.update(rows);
  vi.advanceTimersByTime(20);
}

function drawn(): HTMLElement[] {
  return [...view.element.querySelectorAll<HTMLElement>(".table-body [role=row]")];
}

function row(key: string): HTMLElement {
  const found = drawn().find((element) => element.dataset["key"] === key);
  if (!found) throw new Error(`${key} is not drawn`);
  return found;
}

function press(key: string): void {
  view.element.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
}

function scroll(top: number): void {
  view.element.scrollTop = top;
  view.element.dispatchEvent(new Event("scroll"));
  vi.advanceTimersByTime(20);
}

function active(): string {
  const cell = document.getElementById(view.element.getAttribute("aria-activedescendant") ?? "");
  return `${cell?.closest<HTMLElement>("[role=row]")?.dataset["key"]} ${cell?.getAttribute("aria-colindex")}`;
}

beforeEach(() => {
  vi.useFakeTimers();
  opened = [];
  make();
});

afterEach(() => {
  view.destroy();
  vi.useRealTimers();
});

describe("drawing", () => {
  test("of 10,000 rows only those in sight are in the document, at their places", () => {
    show(rowsOf(10_000));
    expect(drawn().length).toBeLessThan(40);
    expect(view.element.getAttribute("aria-rowcount")).toBe("10001");
    scroll(5000 * ROW);
    expect(drawn().length).toBeLessThan(40);
    expect(row("[5001]").style.transform).toBe(`translateY(${5000 * ROW}px)`);
    expect(row("[5001]").getAttribute("aria-rowindex")).toBe("5002");
    expect(drawn().some((element) => element.dataset["key"] === "[1]")).toBe(false);
  });

  test("many updates cost one drawing", () => {
    show(rowsOf(3));
    const observed = vi.spyOn(view.element, "setAttribute");
    for (let count = 0; count < 100; count += 1) view.update(rowsOf(4));
    vi.advanceTimersByTime(20);
    expect(observed.mock.calls.filter(([name]) => name === "aria-rowcount")).toHaveLength(1);
  });

  test("a row that stays is the same element, and only what changed is written", () => {
    show([rowOf(1), rowOf(2)]);
    const before = row("[2]");
    show([rowOf(2, "changed")]);
    expect(row("[2]")).toBe(before);
    expect(drawn()).toHaveLength(1);
    expect(before.textContent).toBe("2changed");
  });

  test("null, a missing column and markup are shown for what they are", () => {
    show([
      { key: "[1]", row: { id: 1, name: null } },
      { key: "[2]", row: { id: 2 } },
      { key: "[3]", row: { id: 3, name: "<b>x</b>" } },
      { key: "[4]", row: { id: 4, name: { a: [1] } } },
    ]);
    expect(drawn().map((element) => element.children[1]?.textContent)).toEqual(["null", "—", "<b>x</b>", '{"a":[1]}']);
    expect(row("[1]").children[1]?.classList.contains("nothing")).toBe(true);
  });

  test("marks the rows that it is told to", () => {
    view.destroy();
    make({ isMarked: (key) => key === "[2]" });
    show(rowsOf(3));
    expect(drawn().filter((element) => element.classList.contains("marked"))).toEqual([row("[2]")]);
  });
});

describe("flashing", () => {
  const flashing = (): number => view.element.querySelectorAll(".flash").length;

  test("cells that change, and for a while only", () => {
    show(rowsOf(3));
    expect(flashing()).toBe(0);
    show([rowOf(1), rowOf(2, "changed"), rowOf(3)]);
    expect(row("[2]").children[1]?.classList.contains("flash")).toBe(true);
    expect(flashing()).toBe(1);
    vi.advanceTimersByTime(2000);
    expect(flashing()).toBe(0);
  });

  test("rows that come, and not those that merely come into sight", () => {
    show(rowsOf(1000));
    scroll(500 * ROW);
    expect(flashing()).toBe(0);
    scroll(0);
    show([rowOf(5000), ...rowsOf(1000)]);
    expect(row("[5000]").classList.contains("flash")).toBe(true);
    expect(flashing()).toBe(1);
  });

  test("not a row that was read again and is the same", () => {
    show(rowsOf(3));
    show(rowsOf(3));
    expect(flashing()).toBe(0);
  });
});

describe("keys", () => {
  test("move by cell, by screen, and to both ends", () => {
    show(rowsOf(100));
    press("ArrowDown");
    expect(active()).toBe("[1] 1");
    press("ArrowDown");
    press("ArrowRight");
    expect(active()).toBe("[2] 2");
    press("ArrowRight");
    press("ArrowUp");
    expect(active()).toBe("[1] 2");
    press("PageDown");
    expect(active()).toBe("[10] 2");
    press("End");
    expect(active()).toBe("[100] 2");
    press("PageUp");
    press("ArrowLeft");
    expect(active()).toBe("[91] 1");
    press("Home");
    expect(active()).toBe("[1] 1");
  });

  test("bring what they mark into sight", () => {
    show(rowsOf(100));
    press("End");
    expect(view.element.scrollTop).toBe(100 * ROW - HEIGHT);
    press("Home");
    expect(view.element.scrollTop).toBe(0);
  });

  test("leave to the browser what is its own", () => {
    show(rowsOf(3));
    const event = new KeyboardEvent("keydown", { key: "ArrowDown", ctrlKey: true, cancelable: true });
    view.element.dispatchEvent(event);
    expect(event.defaultPrevented).toBe(false);
    expect(view.active).toBeUndefined();
  });

  test("Enter opens the marked row, and a click marks one", () => {
    show(rowsOf(3));
    row("[2]").children[1]?.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    expect(active()).toBe("[2] 2");
    press("Enter");
    expect(opened).toEqual([rowOf(2)]);
  });
});

describe("when rows come above", () => {
  test("the marked row stays the marked row", () => {
    show(rowsOf(10));
    press("ArrowDown");
    press("ArrowDown");
    show([rowOf(99), ...rowsOf(10)]);
    expect(active()).toBe("[2] 1");
    expect(view.active).toEqual(rowOf(2));
  });

  test("what is in sight stays in sight, once one has scrolled", () => {
    show(rowsOf(1000));
    scroll(100 * ROW + 5);
    show([rowOf(5000), rowOf(5001), ...rowsOf(1000)]);
    expect(view.element.scrollTop).toBe(102 * ROW + 5);
  });

  test("at the top one sees them come", () => {
    show(rowsOf(1000));
    show([rowOf(5000), ...rowsOf(1000)]);
    expect(view.element.scrollTop).toBe(0);
    expect(drawn().some((element) => element.dataset["key"] === "[5000]")).toBe(true);
  });

  test("a marked row that is deleted is marked no more", () => {
    show(rowsOf(3));
    press("ArrowDown");
    show([rowOf(2), rowOf(3)]);
    expect(view.active).toBeUndefined();
    expect(view.element.hasAttribute("aria-activedescendant")).toBe(false);
  });
});
