// Every method of `files`, and a watch's handle.
import assert from 'node:assert/strict'
import { e2b, sandbox, scenario, sh, until } from './sdk.mjs'

const { FileType, FilesystemEventType, InvalidArgumentError, NotFoundError, TimeoutError } = e2b
const files = sandbox.files
const FORMS = { form: {}, octets: { useOctetStream: true }, gzip: { gzip: true } }

async function collect(stream) {
  const chunks = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks)
}

for (const [form, options] of Object.entries(FORMS)) {
  scenario(`write and read as ${form}`, async (place) => {
    const path = `${place}/a file, žluťoučký.txt`
    const info = await files.write(path, 'first, and longer', options)
    assert.deepEqual([info.name, info.path, info.type], ['a file, žluťoučký.txt', path, FileType.FILE])
    await files.write(path, 'sécond', options)
    assert.equal(await files.read(path), 'sécond')
    assert.equal(await files.read(path, { format: 'text', gzip: true }), 'sécond')
    const payload = Buffer.alloc(1_000_000, Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)))
    await files.write(`${place}/binary`, payload.buffer.slice(payload.byteOffset, payload.byteOffset + payload.length), options)
    assert(payload.equals(await files.read(`${place}/binary`, { format: 'bytes' })))
    assert(payload.equals(Buffer.from(await (await files.read(`${place}/binary`, { format: 'blob' })).arrayBuffer())))
    assert(payload.equals(await collect(await files.read(`${place}/binary`, { format: 'stream' }))))
    await files.write(`${place}/blob`, new Blob(['from a ', 'blob']), options)
    assert.equal(await files.read(`${place}/blob`), 'from a blob')
    await files.write(`${place}/stream`, new Blob(['from a stream']).stream(), options)
    assert.equal(await files.read(`${place}/stream`), 'from a stream')
    await files.write(`${place}/empty`, '', options)
    assert.equal(await files.read(`${place}/empty`), '')
  })
}

scenario('several files at once', async (place) => {
  const entries = [
    { path: `${place}/many/zero.txt`, data: 'zero' },
    { path: `${place}/one`, data: new TextEncoder().encode('one').buffer },
    { path: `${place}/two`, data: new Blob(['two']) },
  ]
  for (const write of [(given, options) => files.write(given, options), (given, options) => files.writeFiles(given, options)]) {
    assert.deepEqual((await write(entries)).map(({ path }) => path), entries.map(({ path }) => path))
    assert.deepEqual(await Promise.all(entries.map(({ path }) => files.read(path))), ['zero', 'one', 'two'])
    await write([{ path: `${place}/owned`, data: '' }], { user: 'root' })
    assert.equal((await files.getInfo(`${place}/owned`)).owner, 'root')
    await files.remove(`${place}/owned`)
    assert.deepEqual(await write([]), [])
  }
})

scenario('metadata is kept with the file', async (place) => {
  const metadata = { author: 'me', purpose: 'a test' }
  assert.deepEqual((await files.write(`${place}/a`, 'x', { metadata })).metadata, metadata)
  assert.deepEqual((await files.getInfo(`${place}/a`)).metadata, metadata)
  assert.deepEqual((await files.list(place)).map((entry) => entry.metadata), [metadata])
  assert.deepEqual((await files.rename(`${place}/a`, `${place}/b`)).metadata, metadata)
  await assert.rejects(files.write(`${place}/c`, 'x', { metadata: { key: 'line\nbreak' } }), InvalidArgumentError)
})

scenario('what is missing is not found', async (place) => {
  const missing = `${place}/missing`
  assert.equal(await files.exists(missing), false)
  for (const call of [
    () => files.read(missing), () => files.read(missing, { format: 'stream' }), () => files.list(missing),
    () => files.getInfo(missing), () => files.rename(missing, `${place}/x`), () => files.watchDir(missing, () => {}),
  ]) await assert.rejects(call(), NotFoundError)
  await files.remove(missing)
})

scenario('what is no file or directory is refused', async (place) => {
  await files.write(`${place}/file`, 'x')
  for (const call of [
    () => files.read(place), () => files.list(`${place}/file`), () => files.list(place, { depth: 0 }),
    () => files.makeDir(`${place}/file`), () => files.write(place, 'x'),
  ]) await assert.rejects(call(), InvalidArgumentError)
  await assert.rejects(files.read(`${place}/file`, { user: 'nobody-there' }), /nobody-there/)
})

scenario('list by depth', async (place) => {
  for (const path of ['a.txt', 'sub/b.txt', 'sub/sub/c.txt']) await files.write(`${place}/${path}`, 'x')
  const below = async (options) => (await files.list(place, options)).map(({ path }) => path.slice(place.length + 1))
  assert.deepEqual((await files.list(place)).map(({ name, type }) => [name, type]), [['a.txt', FileType.FILE], ['sub', FileType.DIR]])
  assert.deepEqual(await below({ depth: 2 }), ['a.txt', 'sub', 'sub/b.txt', 'sub/sub'])
  assert.deepEqual(await below({ depth: 9 }), ['a.txt', 'sub', 'sub/b.txt', 'sub/sub', 'sub/sub/c.txt'])
})

scenario('info of files, directories and links', async (place) => {
  await files.write(`${place}/target`, '12345')
  await sh('ln -s target link; chmod 640 target', { cwd: place })
  const info = await files.getInfo(`${place}/target`)
  assert.deepEqual(
    [info.size, info.mode, info.permissions, info.owner, info.group, info.type],
    [5, 0o640, '-rw-r-----', 'user', 'user', FileType.FILE],
  )
  assert(Math.abs(info.modifiedTime - Date.now()) < 60_000)
  assert.equal((await files.getInfo(place, { user: 'root' })).type, FileType.DIR)
  assert.equal((await files.getInfo(`${place}/link`)).symlinkTarget, `${place}/target`)
})

scenario('directories are made, moved and removed', async (place) => {
  assert.equal(await files.makeDir(`${place}/d/e`), true)
  assert.equal(await files.makeDir(`${place}/d/e`), false)
  await files.write(`${place}/d/e/f`, 'x')
  const moved = await files.rename(`${place}/d`, `${place}/new`)
  assert.deepEqual([moved.path, moved.type], [`${place}/new`, FileType.DIR])
  assert.equal(await files.read(`${place}/new/e/f`), 'x')
  await files.remove(`${place}/new`)
  assert.equal(await files.exists(`${place}/new`), false)
})

for (const recursive of [false, true]) {
  scenario(`a new file gives exactly three events, recursive ${recursive}`, async (place) => {
    const seen = []
    const watch = await files.watchDir(place, (event) => { seen.push([event.type, event.name]) }, { recursive })
    await files.write(`${place}/new.txt`, 'x')
    await until(() => seen.length >= 3, () => JSON.stringify(seen))
    await watch.stop()
    const { CREATE, CHMOD, WRITE } = FilesystemEventType
    assert.deepEqual(seen, [[CREATE, 'new.txt'], [CHMOD, 'new.txt'], [WRITE, 'new.txt']])
  })
}

scenario('a recursive watch sees what is below', async (place) => {
  await files.makeDir(`${place}/below`)
  const seen = []
  const watch = await files.watchDir(place, (event) => { seen.push(`${event.type} ${event.name}`) }, { recursive: true })
  await files.write(`${place}/below/x`, 'x')
  await files.rename(`${place}/below/x`, `${place}/below/y`)
  await files.remove(`${place}/below/y`)
  await until(() => seen.includes('remove below/y'), () => seen.join())
  for (const event of ['create below/x', 'write below/x', 'rename below/x', 'create below/y']) assert(seen.includes(event), seen.join())
  await watch.stop()
})

scenario('events carry their entry when asked for', async (place) => {
  const entries = []
  const watch = await files.watchDir(place, ({ type, entry }) => { if (type === 'write') entries.push(entry) }, { includeEntry: true })
  await files.write(`${place}/told`, '12345')
  await until(() => entries.length > 0, () => 'no event')
  assert.deepEqual([entries[0].path, entries[0].size], [`${place}/told`, 5])
  await watch.stop()
}, 'includeEntry')

scenario('the end of a watch is told', async (place) => {
  const ends = []
  const onExit = (error) => { ends.push(error) }
  const stopped = await files.watchDir(place, () => {}, { onExit, timeoutMs: 30_000 })
  await stopped.stop()
  await until(() => ends.length === 1, () => 'no end')
  await files.watchDir(place, () => {}, { onExit, timeoutMs: 1000 })
  await until(() => ends.length === 2, () => 'no end by the timeout')
  assert(ends[1] instanceof TimeoutError, ends[1])
})

scenario('signed URLs work for who has no key', async (place) => {
  // By headers the address alone does not tell the sandbox; by name it does.
  const headers = process.env.E2B_DOMAIN ? {} : { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '49983' }
  await files.write(`${place}/note`, 'signed')
  const url = await sandbox.downloadUrl(`${place}/note`, { user: 'user', useSignatureExpiration: 60_000 })
  assert.equal(await (await fetch(url, { headers })).text(), 'signed')
  assert.equal((await fetch(url.replace('note', 'other'), { headers })).status, 401)
  const body = new FormData()
  body.append('file', new Blob(['up']), 'f')
  const response = await fetch(await sandbox.uploadUrl(`${place}/up`), { method: 'POST', body, headers })
  assert.equal(response.status, 200)
  assert.equal(await files.read(`${place}/up`), 'up')
})

scenario('a large file goes both ways', async (place) => {
  const payload = Buffer.alloc(16 << 20, 'firkin')
  await files.write(`${place}/large`, payload.buffer.slice(payload.byteOffset, payload.byteOffset + payload.length))
  assert.equal(await sh(`stat -c %s ${place}/large`), `${payload.length}\n`)
  assert(payload.equals(await files.read(`${place}/large`, { format: 'bytes' })))
})
