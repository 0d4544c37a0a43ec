/** Expected wait: whole rounds of the slots, each as long as the average job. */
export function expectedWait(position: number, slots: number, averageSeconds: number): number {
  return Math.ceil(position / Math.max(1, slots)) * averageSeconds;
}
