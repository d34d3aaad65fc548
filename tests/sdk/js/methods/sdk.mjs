// The SDK at hand with one sandbox for all scenarios, and a record of the public methods they call.
// FIRKIN_TEST_SDK names the package: e2b, or an alias of an older version.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { test } from 'node:test'

const name = process.env.FIRKIN_TEST_SDK ?? 'e2b'
export const e2b = await import(name)
const dist = dirname(createRequire(import.meta.url).resolve(name))
export const version = JSON.parse(readFileSync(join(dist, '..', 'package.json'), 'utf8')).version
const declarations = readFileSync(join(dist, 'index.d.ts'), 'utf8')
const PATIENCE_MS = 20_000

export const sandbox = await e2b.Sandbox.create({ timeoutMs: 300_000 })
const called = new Set()
const recorded = new Map()

// What TypeScript calls private is there at run time all the same.
function privateNames(kind) {
  const block = declarations.match(new RegExp(`declare class ${kind}[ <][^]*?\\n}`))
  assert(block, `no declaration of ${kind}`)
  return new Set([...block[0].matchAll(/^ +(?:private|protected) (?:readonly )?(\w+)/gm)].map((match) => match[1]))
}

// What the SDK calls by itself (git runs commands) shows nothing: the caller must be a scenario.
function note(key) {
  if (new Error().stack.split('\n')[3]?.includes('/methods/')) called.add(key)
}

function record(kind, prototype) {
  const hidden = privateNames(kind)
  recorded.set(kind, [])
  for (const [method, member] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
    if (method === 'constructor' || hidden.has(method)) continue
    const key = `${kind}.${method}`
    recorded.get(kind).push(key)
    if (member.get) {
      Object.defineProperty(prototype, method, { ...member, get() { note(key); return member.get.call(this) } })
    } else {
      prototype[method] = function (...given) { note(key); return member.value.apply(this, given) }
    }
  }
}

const handle = await sandbox.commands.run('true', { background: true })
await handle.wait()
const watch = await sandbox.files.watchDir('/tmp', () => {})
await watch.stop()
for (const [kind, thing] of Object.entries({
  Commands: sandbox.commands, Pty: sandbox.pty, Filesystem: sandbox.files, Git: sandbox.git,
  CommandHandle: handle, WatchHandle: watch,
})) record(kind, Object.getPrototypeOf(thing))

export function unseen() {
  return [...recorded.values()].flat().filter((key) => !called.has(key))
}

export const sh = async (command, options) => (await sandbox.commands.run(command, options)).stdout

// A scenario with an empty directory of its own. `needs` is a word of the version's declarations.
let places = 0
export function scenario(title, run, needs) {
  const skip = needs && !new RegExp(`\\b${needs}\\b`).test(declarations) && `e2b ${version} has no ${needs}`
  test(title, { skip, timeout: 60_000 }, async () => {
    const place = `/home/user/${title.replace(/[^a-z0-9]+/g, '-')}-${places++}`
    await sandbox.files.makeDir(place)
    await run(place)
  })
}

// Waits until the condition holds; `what` tells why not.
export async function until(condition, what) {
  const deadline = Date.now() + PATIENCE_MS
  while (!condition()) {
    assert(Date.now() < deadline, what())
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
