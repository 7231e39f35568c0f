#!/usr/bin/env python3
"""Prints the public API of a crate, one line per item, and compares it with the accepted one.

usage: scripts/public_api.py [--update] [CRATE]      CRATE defaults to backup-core

The accepted API is docs/api/<crate>.txt. A difference fails; `--update` accepts it, so that a change
of the API is a change of a reviewed file. Auto traits and blanket impls are left out: they follow from the rest.
Paths are shortened: std items to their last segment, items of other crates to `crate::Name`.
"""
import difflib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
STD = ("std", "core", "alloc")


def rustdoc_json(crate):
    # JSON output is unstable, so rustdoc needs RUSTC_BOOTSTRAP; rustdoc alone, because build scripts that watch
    # this variable would make cargo rebuild every dependency. Hence this file stands in as RUSTDOC.
    env = dict(os.environ, RUSTDOC=str(pathlib.Path(__file__).resolve()), PUBLIC_API_AS_RUSTDOC="1")
    command = ["cargo", "rustdoc", "--locked", "--quiet", "--lib", "-p", crate, "--", "-Zunstable-options", "--output-format", "json"]
    subprocess.run(command, check=True, cwd=ROOT, env=env)
    metadata = subprocess.run(["cargo", "metadata", "--no-deps", "--format-version", "1"], check=True, cwd=ROOT, capture_output=True)
    target = pathlib.Path(json.loads(metadata.stdout)["target_directory"])
    return json.loads((target / "doc" / f"{crate.replace('-', '_')}.json").read_text())


class Printer:
    """Walks the rustdoc index from the crate root along public paths and collects lines."""

    def __init__(self, doc):
        self.index, self.paths, self.root = doc["index"], doc["paths"], doc["root"]
        self.lines, self.public = set(), {}
        self.name_public_paths(self.root, (), set())

    # -- names -----------------------------------------------------------------------------------------------

    def item(self, item_id):
        return self.index.get(str(item_id))

    def members(self, module_id, seen=frozenset()):
        """(name, id) of everything importable from a module, `use` and `use *` followed."""
        if module_id in seen or self.item(module_id) is None:
            return
        module = self.item(module_id)["inner"]
        ids = module["module"]["items"] if "module" in module else module.get("enum", {}).get("variants", [])
        for child_id in ids:
            child = self.item(child_id)
            if child is None or (child["visibility"] != "public" and "variant" not in child["inner"]):
                continue
            use = child["inner"].get("use")
            if use is None:
                yield child["name"], child_id, None
            elif use["is_glob"]:
                yield from self.members(use["id"], seen | {module_id})
            else:
                yield use["name"], use["id"], use["source"]

    def name_public_paths(self, module_id, path, seen):
        """Remembers the shortest public path of every item."""
        for name, item_id, _ in self.members(module_id):
            here = path + (name,)
            known = self.public.get(item_id)
            if known is None or (len(here), here) < (len(known), known):
                self.public[item_id] = here
            item = self.item(item_id)
            if item and "module" in item["inner"] and item_id not in seen:
                self.name_public_paths(item_id, here, seen | {item_id})

    def path(self, item_id, written):
        if item_id in self.public and self.item(item_id) is not None:
            return "::".join(self.public[item_id])
        full = self.paths.get(str(item_id), {}).get("path")
        if not full:
            return written
        return full[-1] if full[0] in STD else f"{full[0]}::{full[-1]}"

    # -- types -----------------------------------------------------------------------------------------------

    def type(self, t):
        if t is None:
            return "()"
        (kind, v), = t.items() if isinstance(t, dict) else ((t, None),)
        if kind == "resolved_path":
            return self.path(v["id"], v["path"]) + self.args(v["args"])
        if kind in ("generic", "primitive"):
            return "!" if v == "never" else v
        if kind == "borrowed_ref":
            return "&" + (v["lifetime"] + " " if v["lifetime"] else "") + ("mut " if v["is_mutable"] else "") + self.type(v["type"])
        if kind == "raw_pointer":
            return ("*mut " if v["is_mutable"] else "*const ") + self.type(v["type"])
        if kind == "tuple":
            return "(" + ", ".join(map(self.type, v)) + ("," if len(v) == 1 else "") + ")"
        if kind == "slice":
            return f"[{self.type(v)}]"
        if kind == "array":
            return f"[{self.type(v['type'])}; {v['len']}]"
        if kind == "impl_trait":
            return "impl " + self.bounds(v)
        if kind == "dyn_trait":
            parts = [self.hrtb(p["generic_params"]) + self.trait(p["trait"]) for p in v["traits"]]
            return "dyn " + " + ".join(parts + ([v["lifetime"]] if v["lifetime"] else []))
        if kind == "qualified_path":
            owner = self.type(v["self_type"])
            if v["trait"] is None or owner in ("Self",):
                return f"{owner}::{v['name']}"
            return f"<{owner} as {self.trait(v['trait'])}>::{v['name']}{self.args(v['args'])}"
        if kind == "function_pointer":
            return self.hrtb(v["generic_params"]) + "fn" + self.signature(v["sig"], names=False)
        return kind

    def args(self, args):
        if not args:
            return ""
        if "parenthesized" in args:
            p = args["parenthesized"]
            out = f" -> {self.type(p['output'])}" if p["output"] else ""
            return "(" + ", ".join(map(self.type, p["inputs"])) + ")" + out
        if "angle_bracketed" not in args:
            return "(..)"
        parts = [self.arg(a) for a in args["angle_bracketed"]["args"]]
        for c in args["angle_bracketed"]["constraints"]:
            (how, what), = c["binding"].items()
            if how == "constraint":
                parts.append(f"{c['name']}: {self.bounds(what)}")
            else:
                parts.append(f"{c['name']} = {self.term(what)}")
        return f"<{', '.join(parts)}>" if parts else ""

    def arg(self, a):
        if a == "infer":
            return "_"
        (kind, v), = a.items()
        return {"lifetime": lambda: v, "type": lambda: self.type(v), "const": lambda: v["expr"]}[kind]()

    def term(self, t):
        return self.type(t["type"]) if "type" in t else t["constant"]["expr"]

    def trait(self, t):
        return self.path(t["id"], t["path"]) + self.args(t["args"])

    def hrtb(self, params):
        return f"for<{', '.join(p['name'] for p in params)}> " if params else ""

    def bounds(self, bounds):
        out = []
        for b in bounds:
            (kind, v), = b.items()
            if kind == "trait_bound":
                prefix = "?" if v["modifier"] == "maybe" else ""
                out.append(self.hrtb(v["generic_params"]) + prefix + self.trait(v["trait"]))
            elif kind == "outlives":
                out.append(v)
        return " + ".join(out)

    def generics(self, g):
        out = []
        for p in g["params"]:
            (kind, v), = p["kind"].items()
            if kind == "lifetime":
                out.append(p["name"] + (": " + " + ".join(v["outlives"]) if v["outlives"] else ""))
            elif kind == "const":
                out.append(f"const {p['name']}: {self.type(v['type'])}")
            elif not v["is_synthetic"]:
                bound = f": {self.bounds(v['bounds'])}" if v["bounds"] else ""
                out.append(p["name"] + bound + (f" = {self.type(v['default'])}" if v["default"] else ""))
        return f"<{', '.join(out)}>" if out else ""

    def where(self, g):
        out = []
        for w in g["where_predicates"]:
            (kind, v), = w.items()
            if kind == "bound_predicate":
                out.append(f"{self.hrtb(v['generic_params'])}{self.type(v['type'])}: {self.bounds(v['bounds'])}")
            elif kind == "lifetime_predicate":
                out.append(f"{v['lifetime']}: {' + '.join(v['outlives'])}")
        return f" where {', '.join(out)}" if out else ""

    def signature(self, sig, names=True):
        inputs = []
        for name, t in sig["inputs"]:
            ty = self.type(t)
            if name == "self":
                inputs.append({"Self": "self", "&Self": "&self", "&mut Self": "&mut self"}.get(ty, f"self: {ty}"))
            else:
                inputs.append(f"{name}: {ty}" if names else ty)
        return "(" + ", ".join(inputs) + ")" + (f" -> {self.type(sig['output'])}" if sig["output"] else "")

    # -- items -----------------------------------------------------------------------------------------------

    def emit(self, path, keyword, rest=""):
        self.lines.add(f"{keyword} {'::'.join(path)}{rest}")

    def walk(self, item_id, path, seen=frozenset()):
        for name, child_id, source in self.members(item_id):
            here, child = path + (name,), self.item(child_id)
            if self.public.get(child_id, here) != here or child is None:
                self.emit(here, "use", f" = {self.path(child_id, source or name)}")
            elif "module" not in child["inner"]:
                self.one(child, here)
            elif child_id not in seen:
                self.emit(here, "mod")
                self.walk(child_id, here, seen | {child_id})

    def one(self, item, path):
        (kind, v), = item["inner"].items()
        note = " #[non_exhaustive]" if "non_exhaustive" in item["attrs"] else ""
        printer = getattr(self, "print_" + kind, None)
        if printer is None:
            self.emit(path, kind)
        else:
            printer(path, v, note)

    def print_function(self, path, f, note, _="fn"):
        head = "".join(word + " " for word in ("const", "unsafe", "async") if f["header"]["is_" + word])
        self.emit(path, head + "fn", self.generics(f["generics"]) + self.signature(f["sig"]) + self.where(f["generics"]))

    def print_struct(self, path, s, note):
        kind = s["kind"]
        hidden = isinstance(kind, dict) and (kind.get("plain", {}).get("has_stripped_fields") or None in kind.get("tuple", []))
        self.emit(path, "struct", self.generics(s["generics"]) + self.where(s["generics"]) + note + (" { private fields }" if hidden else ""))
        if isinstance(kind, dict):
            self.fields(path, kind["plain"]["fields"] if "plain" in kind else kind["tuple"])
        self.impls(path, s["impls"])

    def print_union(self, path, u, note):
        self.emit(path, "union", self.generics(u["generics"]) + note)
        self.fields(path, u["fields"])

    def print_enum(self, path, e, note):
        self.emit(path, "enum", self.generics(e["generics"]) + self.where(e["generics"]) + note)
        for variant_id in e["variants"]:
            variant = self.item(variant_id)
            if variant:
                self.one(variant, path + (variant["name"],))
        self.impls(path, e["impls"])

    def print_variant(self, path, v, note):
        kind = v["kind"]
        value = f" = {v['discriminant']['value']}" if v["discriminant"] else ""
        if isinstance(kind, dict) and "tuple" in kind:
            types = [self.field_type(i) for i in kind["tuple"]]
            self.emit(path, "variant", f"({', '.join(types)})" + note)
            return
        self.emit(path, "variant", value + note)
        if isinstance(kind, dict):
            self.fields(path, kind["struct"]["fields"])

    def field_type(self, item_id):
        item = self.item(item_id) if item_id is not None else None
        return self.type(item["inner"]["struct_field"]) if item else "_"

    def fields(self, path, ids):
        for field_id in ids:
            field = self.item(field_id) if field_id is not None else None
            if field:
                self.emit(path + (field["name"],), "field", f": {self.type(field['inner']['struct_field'])}")

    def print_trait(self, path, t, note):
        bounds = f": {self.bounds(t['bounds'])}" if t["bounds"] else ""
        self.emit(path, "unsafe trait" if t["is_unsafe"] else "trait", self.generics(t["generics"]) + bounds + self.where(t["generics"]))
        for item_id in t["items"]:
            item = self.item(item_id)
            body = item["inner"].get("function", {}).get("has_body")
            before = set(self.lines)
            self.one(item, path + (item["name"],))
            if body:
                self.lines = before | {line + " { provided }" for line in self.lines - before}

    def print_assoc_type(self, path, t, note):
        bounds = f": {self.bounds(t['bounds'])}" if t["bounds"] else ""
        self.emit(path, "type", self.generics(t["generics"]) + bounds + (f" = {self.type(t['type'])}" if t["type"] else ""))

    def print_assoc_const(self, path, c, note):
        self.emit(path, "const", f": {self.type(c['type'])}" + (f" = {c['value']}" if c["value"] else ""))

    def print_constant(self, path, c, note):
        self.emit(path, "const", f": {self.type(c['type'])} = {c['const']['value'] or c['const']['expr']}")

    def print_static(self, path, s, note):
        self.emit(path, "static", ("mut " if s["is_mutable"] else "") + f": {self.type(s['type'])}")

    def print_type_alias(self, path, t, note):
        self.emit(path, "type", self.generics(t["generics"]) + f" = {self.type(t['type'])}")

    def print_macro(self, path, m, note):
        self.emit(path, "macro")

    def impls(self, path, ids):
        for impl_id in ids:
            impl = self.item(impl_id)["inner"]["impl"]
            if impl["is_synthetic"] or impl["blanket_impl"]:
                continue
            if impl["trait"] is None:
                for item_id in impl["items"]:
                    item = self.item(item_id)
                    if item and item["visibility"] == "public":
                        self.one(item, path + (item["name"],))
            elif not impl["trait"]["path"].startswith("Structural"):
                head = self.generics(impl["generics"])
                types = [f"{i['name']} = {self.type(i['inner']['assoc_type']['type'])}" for i in map(self.item, impl["items"]) if i and "assoc_type" in i["inner"]]
                self.lines.add(f"impl{head} {self.trait(impl['trait'])} for {self.type(impl['for'])}{self.where(impl['generics'])}"
                               + (f" {{ {', '.join(types)} }}" if types else ""))


def main(argv):
    update = "--update" in argv
    crate = next((a for a in argv if not a.startswith("-")), "backup-core")
    printer = Printer(rustdoc_json(crate))
    printer.walk(printer.root, ())
    now = sorted(printer.lines, key=lambda line: (line.split(" ", 1)[1], line))
    accepted_file = ROOT / "docs" / "api" / f"{crate}.txt"
    if update:
        accepted_file.parent.mkdir(parents=True, exist_ok=True)
        accepted_file.write_text("\n".join(now) + "\n")
        print(f"{accepted_file.relative_to(ROOT)}: {len(now)} items")
        return 0
    accepted = accepted_file.read_text().splitlines() if accepted_file.exists() else []
    difference = [d for d in difflib.unified_diff(accepted, now, "accepted", "now", n=0, lineterm="") if not d.startswith(("---", "+++", "@@"))]
    print("\n".join(difference) if difference else f"the public API of {crate} is the accepted one: {len(now)} items")
    if difference:
        print(f"the public API of {crate} changed; `scripts/public_api.py --update {crate}` accepts it", file=sys.stderr)
    return 1 if difference else 0


if __name__ == "__main__":
    if os.environ.get("PUBLIC_API_AS_RUSTDOC"):
        os.execvpe("rustdoc", ["rustdoc", *sys.argv[1:]], dict(os.environ, RUSTC_BOOTSTRAP="1"))
    sys.exit(main(sys.argv[1:]))
