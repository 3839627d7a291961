// What the extension uses of ComfyUI's page, in frontends 1.45 to 1.58, and what the pack's server answers.

export type Id = number | string;

export interface Link {
  origin_id: Id;
  origin_slot: number;
}

export interface Slot {
  name: string;
  type: string | number;
  label?: string;
  localized_name?: string;
  link?: Id | null;
  linkIds?: Id[];
}

export interface Widget {
  name: string;
  type: string;
  value: any;
  label?: string;
  disabled?: boolean;
  tooltip?: string;
  serialize?: boolean;
  element?: HTMLElement;
  options: Record<string, any>;
  callback?: (value: unknown, canvas?: unknown, node?: Node) => void;
}

export interface Graph {
  nodes: Node[];
  links?: Map<Id, Link>;
  outputs?: Slot[];
  rootGraph?: Graph;
  getNodeById(id: Id): Node | null | undefined;
  getLink?(id: Id): Link | null | undefined;
}

export interface Node {
  id: Id;
  type: string;
  comfyClass?: string;
  size: [number, number];
  graph?: Graph | null;
  subgraph?: Graph;
  inputs?: Slot[];
  outputs?: Slot[];
  widgets?: Widget[];
  properties: Record<string, any>;
  addDOMWidget(name: string, type: string, element: HTMLElement, options: Record<string, unknown>): Widget;
  computeSize(): [number, number];
  setSize(size: [number, number]): void;
  setDirtyCanvas(front: boolean, back: boolean): void;
  onConfigure?: (this: Node, ...given: any[]) => void;
  onConnectionsChange?: (this: Node, ...given: any[]) => void;
  onExecuted?: (this: Node, output: Record<string, any>) => void;
  onRemoved?: (this: Node, ...given: any[]) => void;
}

export interface App {
  canvas: { setDirty(front: boolean, back: boolean): void; default_connection_color_byType: Record<string, string> };
  graph: Graph;
  rootGraph?: Graph;
  registerExtension(extension: Record<string, unknown>): void;
  handleFile(file: File): Promise<void>;
  loadGraphData(graph: object, clean?: boolean, restore?: boolean, name?: string | null): Promise<void>;
  extensionManager: {
    toast: { add(message: Record<string, unknown>): void };
    setting: { get(id: string): unknown };
  };
  ui?: { settings?: { addEventListener(name: string, listener: (event: CustomEvent) => void): void } };
}

export interface Api {
  fetchApi(path: string): Promise<Response>;
  apiURL(path: string): string;
  addEventListener(name: string, listener: (event: CustomEvent) => void): void;
}

export interface SizeRule {
  floor: number;
  small: "error" | "raise to 64" | "render";
  multiple: number;
}

export interface RecipeFacts {
  size: SizeRule;
  control_images: number;
  guided_above: number;
  options: string[];
}

export interface ModelFacts {
  title: string;
  defaults: Record<string, number>;
  usual_sizes: [number, number][];
  guidance: "classifier-free" | "embedded";
  system_prompt: boolean;
  recipes: Record<string, RecipeFacts>;
}

export interface Facts {
  minimum_side: number;
  models: Record<string, ModelFacts>;
}

export interface Card {
  size: number;
  format: string;
  ranks: number[];
  trained_for: string;
  trained_with: string;
  step: number | null;
  trigger_word: string;
  model?: string;
  fit?: { verdict: "yes" | "no" | "maybe"; words: string };
}

export interface BaseFile {
  name: string;
  bytes: number;
  sampled?: string;
  sha256?: string | null;
}

export interface BasePart {
  choice: string;
  source: string;
  files: BaseFile[];
}
