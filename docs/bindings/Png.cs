// PNG files of 8 bits per channel, not interlaced, with no library. Use SkiaSharp or ImageSharp for other pictures.
using System;
using System.IO;
using System.IO.Compression;
using System.Linq;
using System.Text;

public static class Png
{
    private static readonly byte[] Signature = { 137, 80, 78, 71, 13, 10, 26, 10 };

    /// <summary>A picture as RGB; transparent pixels are laid on white.</summary>
    public static Picture Read(string path)
    {
        var file = File.ReadAllBytes(path);
        if (!file.Take(8).SequenceEqual(Signature)) throw new ArgumentException($"{path} is not a PNG");
        var packed = new MemoryStream();
        byte[] header = null, palette = null, alphas = new byte[0];
        for (var at = 8; at + 8 <= file.Length;)
        {
            var length = Number(file, at);
            var part = file.Skip(at + 8).Take(length).ToArray();
            switch (Encoding.ASCII.GetString(file, at + 4, 4))
            {
                case "IHDR": header = part; break;
                case "PLTE": palette = part; break;
                case "tRNS": alphas = part; break;
                case "IDAT": packed.Write(part, 0, length); break;
            }
            at += length + 12;
        }
        int width = Number(header, 0), height = Number(header, 4), kind = header[9];
        if (header[8] != 8 || header[12] != 0) throw new ArgumentException($"{path} is not of 8 bits, or is interlaced");
        var channels = kind == 2 ? 3 : kind == 4 ? 2 : kind == 6 ? 4 : 1;
        packed.Position = 2; // the zlib header; what follows is deflate
        var rows = new MemoryStream();
        using (var inflate = new DeflateStream(packed, CompressionMode.Decompress)) inflate.CopyTo(rows);
        var data = Unfilter(rows.ToArray(), height, width * channels, channels);

        var picture = new Picture(height, width, 3);
        for (var i = 0; i < height * width; i++)
        {
            var first = i * channels;
            var alpha = kind == 4 || kind == 6 ? data[first + channels - 1]
                : kind == 3 && data[first] < alphas.Length ? alphas[data[first]] : 255;
            for (var c = 0; c < 3; c++)
            {
                var value = kind == 3 ? palette[3 * data[first] + c] : data[first + (channels >= 3 ? c : 0)];
                picture.Pixels[3 * i + c] = (byte)((value * alpha + 255 * (255 - alpha) + 127) / 255);
            }
        }
        return picture;
    }

    public static void Write(string path, Picture picture)
    {
        var rows = new MemoryStream();
        for (var y = 0; y < picture.Height; y++)
        {
            rows.WriteByte(0);
            rows.Write(picture.Pixels, y * picture.Width * 3, picture.Width * 3);
        }
        var packed = new MemoryStream();
        packed.Write(new byte[] { 0x78, 0x9c }, 0, 2);
        var raw = rows.ToArray();
        using (var deflate = new DeflateStream(packed, CompressionMode.Compress, true)) deflate.Write(raw, 0, raw.Length);
        uint a = 1, b = 0;
        foreach (var value in raw)
        {
            a = (a + value) % 65521;
            b = (b + a) % 65521;
        }
        packed.Write(Bytes(b << 16 | a), 0, 4);
        var size = Bytes((uint)picture.Width).Concat(Bytes((uint)picture.Height));
        using (var file = File.Create(path))
        {
            file.Write(Signature, 0, 8);
            Chunk(file, "IHDR", size.Concat(new byte[] { 8, 2, 0, 0, 0 }).ToArray());
            Chunk(file, "IDAT", packed.ToArray());
            Chunk(file, "IEND", new byte[0]);
        }
    }

    private static byte[] Unfilter(byte[] rows, int height, int width, int step)
    {
        var data = new byte[height * width];
        for (var y = 0; y < height; y++)
        {
            var filter = rows[y * (width + 1)];
            for (var x = 0; x < width; x++)
            {
                int left = x >= step ? data[y * width + x - step] : 0;
                int above = y > 0 ? data[(y - 1) * width + x] : 0;
                int corner = x >= step && y > 0 ? data[(y - 1) * width + x - step] : 0;
                int guess = filter == 1 ? left : filter == 2 ? above : filter == 3 ? (left + above) / 2
                    : filter == 4 ? Paeth(left, above, corner) : 0;
                data[y * width + x] = (byte)(rows[y * (width + 1) + 1 + x] + guess);
            }
        }
        return data;
    }

    private static int Paeth(int left, int above, int corner)
    {
        int a = Math.Abs(above - corner), b = Math.Abs(left - corner), c = Math.Abs(left + above - 2 * corner);
        return a <= b && a <= c ? left : b <= c ? above : corner;
    }

    private static void Chunk(Stream file, string kind, byte[] data)
    {
        var body = Encoding.ASCII.GetBytes(kind).Concat(data).ToArray();
        var crc = 0xffffffffu;
        foreach (var value in body)
        {
            crc ^= value;
            for (var bit = 0; bit < 8; bit++) crc = (crc & 1) != 0 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
        }
        file.Write(Bytes((uint)data.Length), 0, 4);
        file.Write(body, 0, body.Length);
        file.Write(Bytes(~crc), 0, 4);
    }

    private static int Number(byte[] data, int at) =>
        data[at] << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3];

    private static byte[] Bytes(uint number) =>
        new[] { (byte)(number >> 24), (byte)(number >> 16), (byte)(number >> 8), (byte)number };
}
