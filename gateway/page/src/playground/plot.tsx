/** A quick plot of two columns of a result. */
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { ManifestField } from "../core/types.ts";
import { NUMBERS } from "../parts/rows_table.tsx";
import type { Row } from "./difference.ts";

const MOST_POINTS = 5000;
const HEIGHT_PIXELS = 280;
const MOST_NAMES = 12;

/** Of the axis, on average. */
const LETTER_PIXELS = 8;

/** JavaScript reads a day as midnight of UTC, and the axis has midnights of the viewer. */
const DAY = /^\d{4}-\d\d-\d\d$/;

const { bars: barsOf, linear } = uPlot.paths;
const bars = () => barsOf!({ size: [0.6, 80] });
const lines = () => linear!();

/** A bar begins at zero. */
function fromZero(_: uPlot, least: number, most: number): [number, number] {
  return [Math.min(0, 1.05 * least), Math.max(0, 1.05 * most)];
}

/** A column as positions on an axis: numbers as they are, times in seconds, other values in the order in which they come. */
export function positionsOf(field: ManifestField, rows: readonly Row[]): { positions: (number | null)[]; kind: "number" | "time" | "category"; names: string[] } {
  const values = rows.map((row) => row[field.name]);
  if (NUMBERS.has(field.base_type)) return { positions: values.map((value) => (value === null ? null : Number(value))), kind: "number", names: [] };
  if (/^Date/.test(field.base_type)) return { positions: values.map((value) => (typeof value === "string" ? Date.parse(DAY.test(value) ? `${value}T00:00` : value) / 1000 : null)), kind: "time", names: [] };
  const places = new Map<string, number>();
  const positions = values.map((value) => {
    const name = String(value);
    if (!places.has(name)) places.set(name, places.size);
    return places.get(name) ?? null;
  });
  return { positions, kind: "category", names: [...places.keys()] };
}

export function Plot({ fields, rows }: { fields: readonly ManifestField[]; rows: readonly Row[] }) {
  const numeric = fields.filter((field) => NUMBERS.has(field.base_type));
  const [x, setX] = useState(fields[0]?.name ?? "");
  const [y, setY] = useState(numeric.at(-1)?.name ?? "");
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const [xField, yField] = [fields.find((field) => field.name === x), numeric.find((field) => field.name === y)];
    const element = box.current;
    if (!element || !xField || !yField) return;
    let plot: uPlot | null = null;
    function redraw(): void {
      plot?.destroy();
      plot = draw(element!, xField!, yField!, rows.slice(0, MOST_POINTS));
    }
    redraw();
    // a canvas follows neither the width nor the colours of the page
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", redraw);
    window.addEventListener("resize", redraw);
    return () => (dark.removeEventListener("change", redraw), window.removeEventListener("resize", redraw), plot?.destroy());
  }, [x, y, rows]);
  if (numeric.length === 0) return <p class="faint">No column has numbers to plot.</p>;
  return (
    <>
      <div class="row">
        <label>x <select aria-label="x" value={x} onChange={(event) => setX(event.currentTarget.value)}>{fields.map((field) => <option key={field.name}>{field.name}</option>)}</select></label>
        <label>y <select aria-label="y" value={y} onChange={(event) => setY(event.currentTarget.value)}>{numeric.map((field) => <option key={field.name}>{field.name}</option>)}</select></label>
        {rows.length > MOST_POINTS && <span class="faint">the first {MOST_POINTS} rows</span>}
      </div>
      <div class="plot" ref={box} role="img" aria-label={`Plot of ${y} by ${x}`} />
    </>
  );
}

/** The names on an axis must not run into each other. */
function shortened(name: string, pixels: number): string {
  const most = Math.max(2, Math.floor(pixels / LETTER_PIXELS));
  return name.length > most ? `${name.slice(0, most - 1)}…` : name;
}

function draw(box: HTMLElement, xField: ManifestField, yField: ManifestField, rows: readonly Row[]): uPlot {
  const along = positionsOf(xField, rows);
  const up = positionsOf(yField, rows).positions;
  const points = along.positions.map((position, at) => [position, up[at] ?? null] as const).filter((pair): pair is readonly [number, number | null] => pair[0] !== null);
  points.sort((a, b) => a[0] - b[0]);
  const style = getComputedStyle(document.documentElement);
  const [text, edge, accent] = ["--text", "--edge", "--accent"].map((name) => style.getPropertyValue(name));
  const axis = { stroke: text ?? "", grid: { stroke: edge ?? "" }, ticks: { stroke: edge ?? "" } };
  const isCategory = along.kind === "category";
  const width = Math.max(200, box.clientWidth);
  const step = Math.ceil(along.names.length / MOST_NAMES);
  const shown = Math.ceil(along.names.length / step);
  const named = isCategory ? { splits: () => along.names.map((_, at) => at).filter((at) => at % step === 0), values: (_: uPlot, splits: number[]) => splits.map((at) => shortened(along.names[at] ?? "", width / shown)) } : {};
  // where each x has one row, neighbours belong together; several rows would make a tangle of lines or bars on each other
  const isUnique = new Set(along.positions).size === along.positions.length;
  const paths = !isUnique ? () => null : isCategory ? bars() : lines();
  const scales = { x: { time: along.kind === "time", ...(isCategory && { range: [-0.5, along.names.length - 0.5] as [number, number] }) }, ...(isCategory && isUnique && { y: { range: fromZero } }) };
  return new uPlot(
    {
      width,
      height: HEIGHT_PIXELS,
      legend: { show: false },
      scales,
      axes: [{ ...axis, ...named }, axis],
      series: [{}, { label: yField.name, paths, stroke: accent ?? "", ...(isCategory && isUnique ? { fill: accent ?? "", points: { show: false } } : { points: { show: true, size: 6, fill: accent ?? "", stroke: accent ?? "" } }) }],
    },
    [points.map((pair) => pair[0]), points.map((pair) => pair[1])],
    box,
  );
}
